import os
import subprocess
from pathlib import Path

import pytest
from tests.local.hosts.lab import ROOT

from holdfast_local.hosts import IsolationError, Mode, detect
from holdfast_local.hosts.isolation import can_boot, isolation


def test_forced_loopback_is_loopback_and_says_what_it_does_not_enforce() -> None:
    found = detect("loopback")
    assert found.mode is Mode.LOOPBACK
    assert not found.separate_users
    assert any("security groups are not applied" in line for line in found.not_enforced)
    assert any("firewall service is skipped" in line for line in found.not_enforced)


def test_auto_takes_the_strongest_that_works_and_says_why_not_a_stronger() -> None:
    strongest = next(mode for mode in Mode if _works(mode))
    found = detect("auto")
    assert found.mode is strongest
    assert [line.partition(":")[0] for line in found.not_stronger] == list(Mode)[: list(Mode).index(strongest)]


def test_without_its_image_nothing_boots_and_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not can_boot():
        pytest.skip("hosts cannot be booted here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = detect("auto")
    assert found.mode is Mode.ROOT
    assert found.not_stronger[0].startswith("boot: the image that hosts boot has not been made")


def test_an_unknown_mode_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(
        IsolationError, match=r"must be one of auto, process, boot, root, userns, loopback, got 'docker'"
    ):
        detect("docker")


def test_root_isolation_is_refused_without_root() -> None:
    if os.geteuid() != 0:
        with pytest.raises(IsolationError, match="root: needs root"):
            detect("root")
        return
    code = "from holdfast_local.hosts.isolation import detect; detect('root')"
    environment = {"PYTHONPATH": f"{ROOT}/local:{ROOT}/node:{ROOT}/.venv/lib/python3.11/site-packages"}
    argv = ["setpriv", "--reuid=65000", "--regid=65000", "--clear-groups", "/usr/bin/python3", "-c", code]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert "root: needs root, this is uid 65000; use --hosts auto" in done.stderr


@pytest.mark.parametrize("tool", ["nft", "ip", "unshare"])
def test_a_missing_tool_is_named_with_its_package(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast_local.hosts import isolation as module

    known = module.shutil.which
    monkeypatch.setattr(module.shutil, "which", lambda name: None if name == tool else known(name))
    with pytest.raises(IsolationError, match=f"install the packages {module.NAMESPACE_TOOLS[tool]}"):
        detect("root")
    fallback = detect("auto")
    assert fallback.mode is Mode.LOOPBACK
    assert [line.partition(":")[0] for line in fallback.not_stronger] == ["boot", "root", "userns"]


def test_shared_user_ids_are_said_to_be_shared() -> None:
    shared = isolation(Mode.USERNS, separate_users=False).not_enforced
    separate = isolation(Mode.USERNS, separate_users=True).not_enforced
    assert set(shared) - set(separate) == {line for line in shared if "share one user id" in line}


def _works(mode: Mode) -> bool:
    try:
        detect(mode)
    except IsolationError:
        return False
    return True
