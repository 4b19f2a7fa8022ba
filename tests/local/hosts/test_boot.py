"""Boots that fail: the phase and the cause are published and logged, and nothing of the node runs."""

import io
import json
import zipfile
from collections.abc import Callable

import pytest
from tests.local.hosts.lab import Lab, Machine, bundle

from holdfast_local.hosts import BootError
from holdfast_local.hosts.boot import unpack
from holdfast_node.contract.roles import Role


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name in names:
            made.writestr(name, "x")
    return buffer.getvalue()


def _missing_object(lab: Lab) -> str:
    text = lab.user_data(Role.WORKER)
    document = json.loads(text.partition("HOLDFAST_NODE_JSON'\n")[2].partition("\nHOLDFAST_NODE_JSON")[0])
    return text.replace(document["bundle"]["key"], "bundles/none.zip")


FAILURES: dict[str, tuple[Callable[[Lab], str], str]] = {
    "wrong-digest": (
        lambda lab: lab.user_data(Role.WORKER, digest="0" * 64),
        "must have the SHA-256 " + "0" * 64,
    ),
    "no-user-data": (lambda lab: "", "the metadata service gave no user data: HTTP 404"),
    "no-node-configuration": (
        lambda lab: "#!/bin/sh\ntrue\n",
        "user data must have one line that starts with 'cat > /etc/holdfast/node.json', got 0",
    ),
    "no-such-bundle": (_missing_object, "cannot fetch the node bundle s3://holdfast-bundles/bundles/none.zip"),
    "no-archive": (lambda lab: lab.user_data(Role.WORKER, b"junk"), "the node bundle is not a zip archive"),
    "firewall-fails": (
        lambda lab: lab.user_data(Role.WORKER, bundle(firewall="raise SystemExit('nft refused')")),
        "the firewall service ended with status 1: nft refused",
    ),
}


@pytest.fixture(scope="module")
def failed(root_machine: Machine, lab: Lab) -> dict[str, str]:
    """The instances of all failures, launched together."""
    return {name: lab.launch(Role.WORKER, make(lab)) for name, (make, _) in FAILURES.items()}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_boot_is_published_with_its_cause(failed: dict[str, str], name: str, root_machine: Machine) -> None:
    host = root_machine.await_phase(failed[name], "failed")
    assert FAILURES[name][1] in host["cause"]
    assert "agent" not in host["services"]
    logged = root_machine.run(failed[name], "tail", "-1", "/var/log/holdfast/boot.log").stdout
    assert json.loads(logged)["cause"] == host["cause"]


def test_nothing_of_a_bundle_with_another_digest_is_unpacked(failed: dict[str, str], root_machine: Machine) -> None:
    root_machine.await_phase(failed["wrong-digest"], "failed")
    assert root_machine.run(failed["wrong-digest"], "ls", "/opt/holdfast/bundle").stdout == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive("holdfast_node/x.py", "../../etc/passwd"), "a name that leads elsewhere: '../../etc/passwd'"),
        (archive("holdfast_node/x.py", "/etc/passwd"), "a name that leads elsewhere: '/etc/passwd'"),
        (archive("other/x.py"), "holds no package holdfast_node"),
        (b"", "is not a zip archive"),
    ],
    ids=["upwards", "absolute", "no-package", "empty"],
)
def test_a_bundle_that_is_none_is_refused(data: bytes, message: str, tmp_path: object) -> None:
    from pathlib import Path

    with pytest.raises(BootError) as refused:
        unpack(data, Path(str(tmp_path)))
    assert message in str(refused.value)
    assert not list(Path(str(tmp_path)).iterdir())
