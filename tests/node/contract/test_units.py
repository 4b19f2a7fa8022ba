"""The unit files fulfil the contract's table of services: what the one says, the other does."""

import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from tests.node.units.unit_files import UNITS, Unit, service

from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.services import WATCHDOG_START_SECONDS, Service, services

PATHS = NodePaths()
TABLE = services(PATHS, python="/opt/holdfast/venv/bin/python", stunnel="/usr/bin/stunnel")
WAITING = [entry for entry in TABLE if entry.waits_for_request]
each = pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)


def test_every_service_has_a_unit_and_every_unit_a_service() -> None:
    units = {path.stem.removeprefix("holdfast-") for path in UNITS.glob("holdfast-*.service") if "@" not in path.name}
    assert units == {entry.name for entry in TABLE}


@each
def test_the_unit_runs_the_contracts_command_as_its_user(entry: Service) -> None:
    unit = service(entry.name)
    assert shlex.split(str(unit.one("Service", "ExecStart"))) == list(entry.argv)
    assert unit.one("Service", "User") == entry.user
    assert unit.one("Service", "Group") == entry.user
    groups = [User.TUNNEL, User.TRAINER] if entry.user is User.AGENT else []
    assert unit.words("Service", "SupplementaryGroups") == groups


@each
def test_the_unit_starts_when_the_contract_says(entry: Service) -> None:
    unit, target = service(entry.name), Unit("holdfast.target")
    request = f"holdfast-request@{entry.name}"
    bound = [f"{request}.service"] if entry.waits_for_request else []
    assert unit.words("Unit", "BindsTo") == bound
    assert (f"{request}.service" in unit.words("Unit", "After")) is entry.waits_for_request
    wanted = f"{request}.path" if entry.waits_for_request else f"holdfast-{entry.name}.service"
    assert wanted in target.words("Unit", "Wants")
    assert unit.all("Install", "WantedBy") == (["sysinit.target"] if entry.once else [])
    runs_to_its_end = entry.once or entry.user is None
    assert (unit.one("Service", "Type") == "oneshot") is runs_to_its_end


def test_requests_and_reloads_are_the_contracts_files() -> None:
    assert Unit("holdfast-request@.path").all("Path", "PathExists") == [str(PATHS.start_request("%i"))]
    reload = str(PATHS.reload_request("%i"))
    assert Unit("holdfast-reload@.path").all("Path", "PathExists") == [reload]
    remove, send = Unit("holdfast-reload@.service").all("Service", "ExecStart")
    assert remove.split()[-1] == reload
    assert send.split()[1:] == ["kill", "--kill-whom=main", "--signal=SIGHUP", "holdfast-%i.service"]
    wanted = Unit("holdfast.target").words("Unit", "Wants")
    reloading = {entry.name for entry in TABLE if entry.reloads}
    assert {unit.split("@")[1] for unit in wanted if "reload@" in unit} == {f"{name}.path" for name in reloading}


@each
def test_the_unit_restarts_and_is_watched_as_the_contract_says(entry: Service) -> None:
    unit = service(entry.name)
    assert unit.one("Service", "Restart") == ("on-abnormal" if entry.restarts else None)
    if entry.restarts:  # what on-abnormal leaves out: the signals that systemd takes for a clean end
        clean = {signal.SIGTERM.name, signal.SIGHUP.name, signal.SIGINT.name, signal.SIGPIPE.name}
        assert set(unit.words("Service", "RestartForceExitStatus")) == clean
    watchdog = entry.watchdog_seconds
    assert unit.one("Service", "WatchdogSec") == (None if watchdog is None else str(watchdog))
    assert (unit.one("Service", "Type") == "notify") is (watchdog is not None)
    if watchdog is not None:
        assert unit.one("Service", "TimeoutStartSec") == str(WATCHDOG_START_SECONDS)


@each
def test_the_unit_logs_and_records_where_the_contract_says(entry: Service) -> None:
    unit = service(entry.name)
    assert unit.one("Service", "StandardOutput") == f"append:{PATHS.log(entry.name)}"
    assert unit.one("Service", "StandardError") == "inherit"
    after = str(unit.one("Service", "ExecStopPost"))
    assert after.startswith("+") and after.endswith(f"-m holdfast_node.systemd.ended --root / {entry.name}")
    before = [line for key in ("ExecStartPre", "ExecStartPost") for line in unit.all("Service", key)]
    removes = [line for line in before if f"rm -f {PATHS.exit_record(entry.name)}" in line and line.startswith("+")]
    assert len(removes) == (0 if entry.once else 1)


@pytest.mark.parametrize("name", ["trainer", "tunnel"])
def test_a_service_s_process_id_is_where_the_agent_looks_for_it_and_can_be_read(name: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(str(service(name).one("Service", "ExecStartPost")))
    assert program == "+/usr/bin/sh"  # as root
    record = tmp_path / "record"
    text = arguments[1].replace(str(PATHS.main_pid(name)), str(record))
    text = text.replace(str(PATHS.exit_record(name)), str(tmp_path / "ended"))
    subprocess.run(["sh", "-c", text], env={"MAINPID": "4711"}, check=True, umask=0o027)
    assert record.read_text() == "4711\n"
    assert record.stat().st_mode & 0o777 == 0o644
    assert PATHS.main_pid(name).parent == PATHS.exit_record(name).parent  # which the unit binds for both


def test_the_agent_sees_the_other_services_processes_and_nobody_else_does() -> None:
    hiding = {entry.name for entry in TABLE if service(entry.name).one("Service", "ProtectProc") == "invisible"}
    assert hiding == {entry.name for entry in TABLE} - {"agent"}


@pytest.mark.parametrize("entry", [entry for entry in TABLE if not entry.once], ids=lambda entry: entry.name)
def test_nothing_starts_without_the_firewall(entry: Service) -> None:
    unit = service(entry.name)
    assert "holdfast-firewall.service" in unit.words("Unit", "Requires")
    assert "holdfast-firewall.service" in unit.words("Unit", "After")


def test_the_firewall_is_up_before_the_network() -> None:
    unit = service("firewall")
    assert "network-pre.target" in unit.words("Unit", "Before")
    assert unit.words("Unit", "Wants") == ["network-pre.target"]
    assert unit.one("Unit", "DefaultDependencies") == "no"


def test_users_have_the_contracts_ids() -> None:
    lines = (UNITS / "sysusers.conf").read_text().splitlines()
    users = {words[1]: int(words[2]) for line in lines if (words := line.split())[0] == "u"}
    assert users == dict(UIDS)
    assert [line.split()[1:] for line in lines if line.startswith("m")] == [
        [User.AGENT, User.TUNNEL],
        [User.AGENT, User.TRAINER],
    ]


def test_logs_are_made_for_their_users_before_systemd_opens_them() -> None:
    text = (UNITS / "tmpfiles.conf").read_text()
    for entry in TABLE:
        user = entry.user or "root"
        assert re.search(rf"^f {PATHS.log(entry.name)} 0640 {user} {user}$", text, re.MULTILINE)


def test_the_units_name_no_directory_that_the_contract_does_not_have() -> None:
    known = [PATHS.state, PATHS.tls, PATHS.job, PATHS.work, PATHS.logs, PATHS.run, PATHS.checkpoints]
    for path in UNITS.glob("holdfast*"):
        for found in re.findall(r"(?<![\w-])-?(/(?:var/lib|var/log|run)/holdfast/?[\w./-]*)", path.read_text()):
            below = Path(found)
            assert any(below == place or place in below.parents or below in place.parents for place in known), found
