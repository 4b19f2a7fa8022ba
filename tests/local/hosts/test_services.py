"""The service manager inside a host: users, environment, requests, records."""

import json
from collections.abc import Callable, Iterator

import pytest
from tests.local.hosts.lab import Lab, Machine, bundle, machine_of, until

from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import Role

PATHS = NodePaths()
TELL = """
import json, os, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "umask": oct(os.umask(0)),
    "no_new_privs": status["NoNewPrivs"].strip(), "bounding": status["CapBnd"].strip(),
    "effective": status["CapEff"].strip(), "environ": sorted(os.environ), "aws": os.environ.get("AWS_CA_BUNDLE"),
    "stdin": os.readlink("/proc/self/fd/0"), "argv": sys.argv[1:], "leader": os.getsid(0) == os.getpid(),
}), flush=True)
"""
AGENT = f"import time\n{TELL}\ntime.sleep(600)\n"
#: Does what the file /mnt/checkpoints/do says, which the test writes.
TRAINER = f"""
{TELL}
import subprocess, sys, time
order = open("/mnt/checkpoints/do").read()
child = subprocess.Popen(["sleep", "600"])
open("/mnt/checkpoints/child", "w").write(str(child.pid))
if order.startswith("exit"):
    sys.exit(int(order.split()[1]))
if order == "die":
    os.kill(os.getpid(), 9)
time.sleep(600)
"""


class Host:
    def __init__(self, machine: Machine, instance: str) -> None:
        self.machine, self.instance = machine, instance

    def run(self, *argv: str, user: User | None = None) -> str:
        return self.machine.run(self.instance, *argv, user=user).stdout

    def service(self, name: str) -> str:
        return str(self.machine.host(self.instance)["services"].get(name, ""))

    def told(self, service: str) -> dict[str, object]:
        def line() -> str:
            lines = self.run("cat", str(PATHS.log(service))).splitlines()
            return lines[-1] if lines and lines[-1].endswith("}") else ""

        return dict(json.loads(until(line, f"{service} has told")))

    def order(self, text: str) -> None:
        self.run("sh", "-c", f"printf '%s' '{text}' > {PATHS.checkpoints}/do", user=User.TRAINER)

    def request(self, service: str) -> None:
        self.run("rm", "-f", str(PATHS.start_request(service)), user=User.AGENT)
        self.run("touch", str(PATHS.start_request(service)), user=User.AGENT)

    def record(self, service: str) -> Callable[[], dict[str, int]]:
        def read() -> dict[str, int]:
            text = self.run("cat", str(PATHS.exit_record(service)))
            return dict(json.loads(text)) if text else {}

        return read

    def alive(self, pid: str) -> bool:
        return self.machine.run(self.instance, "kill", "-0", pid).returncode == 0

    def end_trainer(self) -> None:
        self.run("rm", "-f", str(PATHS.start_request("trainer")), user=User.AGENT)
        until(lambda: self.service("trainer") != "running", "the trainer has ended")


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    with machine_of("root", lab) as machine:
        data = bundle(agent=AGENT, trainer=TRAINER)
        instance = lab.launch(Role.WORKER, lab.user_data(Role.WORKER, data))
        machine.await_phase(instance)
        yield Host(machine, instance)


def test_the_agent_is_unprivileged_and_may_serve_the_other_two(host: Host) -> None:
    told = host.told("agent")
    agent, tunnel, trainer = (UIDS[user] for user in (User.AGENT, User.TUNNEL, User.TRAINER))
    assert (told["uid"], told["gid"], told["groups"]) == (agent, agent, [tunnel, trainer])
    assert (told["no_new_privs"], int(str(told["bounding"]), 16), int(str(told["effective"]), 16)) == ("1", 0, 0)
    assert (told["umask"], told["stdin"], told["leader"]) == ("0o27", "/dev/null", True)
    assert told["argv"] == ["--root", "/"]


def test_the_agent_is_told_where_aws_is_and_nothing_secret(host: Host) -> None:
    told = host.told("agent")
    given = {name for name in told["environ"] if name.startswith("AWS_")}  # type: ignore[attr-defined]
    assert given == {"AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_REGION"}
    assert told["aws"] == "/etc/holdfast/ca-bundle.pem"


def test_a_service_that_waits_has_not_started(host: Host) -> None:
    assert host.service("tunnel") == ""
    assert not host.record("tunnel")()


def test_the_trainer_starts_on_request_without_groups_or_aws(host: Host) -> None:
    host.order("stay")
    host.request("trainer")
    told = host.told("trainer")
    trainer = UIDS[User.TRAINER]
    assert (told["uid"], told["gid"], told["groups"]) == (trainer, trainer, [])
    assert not [name for name in told["environ"] if name.startswith("AWS_")]  # type: ignore[attr-defined]
    host.end_trainer()


@pytest.mark.parametrize(("order", "status"), [("exit 0", 0), ("exit 7", 7), ("die", -9)], ids=str)
def test_the_exit_record_holds_how_it_ended(host: Host, order: str, status: int) -> None:
    host.order(order)
    host.request("trainer")
    until(lambda: host.service("trainer") == f"exited {status}", f"the trainer exited {status}")
    assert host.record("trainer")() == {"status": status}
    assert host.run("stat", "--format=%a %u", str(PATHS.exit_record("trainer"))).split() == ["644", "0"]


def test_what_a_service_leaves_of_its_process_group_is_killed(host: Host) -> None:
    host.order("exit 0")
    host.request("trainer")
    until(host.record("trainer"), "the trainer has ended")
    until(lambda: host.service("trainer") == "exited 0", "and the machine says so")
    child = host.run("cat", f"{PATHS.checkpoints}/child")
    until(lambda: not host.alive(child), "the trainer's child is gone")


def test_removing_the_request_stops_the_service(host: Host) -> None:
    host.order("stay")
    host.request("trainer")
    until(lambda: host.service("trainer") == "running", "the trainer runs")
    assert not host.record("trainer")()
    host.end_trainer()
    assert host.service("trainer") == "exited -15"
    assert host.record("trainer")() == {"status": -15}


def test_only_the_agent_can_ask_for_a_service(host: Host) -> None:
    for user in (User.TRAINER, User.TUNNEL):
        done = host.machine.run(host.instance, "touch", str(PATHS.start_request("tunnel")), user=user)
        assert "Permission denied" in done.stderr
    assert host.machine.run(host.instance, "touch", str(PATHS.exit_record("tunnel")), user=User.AGENT).returncode != 0


def test_log_files_belong_to_their_service_and_the_agent_reads_them(host: Host) -> None:
    names = [str(PATHS.log(service)) for service in ("agent", "trainer")]
    owners = host.run("stat", "--format=%a %u", *names).splitlines()
    assert owners == [f"640 {UIDS[User.AGENT]}", f"640 {UIDS[User.TRAINER]}"]
    assert host.run("head", "-1", str(PATHS.log("trainer")), user=User.AGENT)
    assert "Permission denied" in host.machine.run(host.instance, "cat", names[0], user=User.TRAINER).stderr


def test_the_boot_log_tells_every_phase(host: Host) -> None:
    lines = [json.loads(line) for line in host.run("cat", str(PATHS.logs / "boot.log")).splitlines()]
    phases = [line["phase"] for line in lines if line["event"] == "phase"]
    assert phases == ["boot", "user-data", "bundle", "mount", "services", "running"]
    assert all("time" in line for line in lines)
