import io
import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from holdfast_local.emulator.errors import EmulatorError
from holdfast_local.emulator.process import Emulator, client_environment

from .conftest import AWS_PYTHON, ROOT, Cloud


def processes_of(group: int) -> list[int]:
    """Return the processes of a process group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_answers_on_loopback_only_and_not_on_443(emulator: Emulator) -> None:
    sockets = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True, timeout=10).stdout
    mine = [line.split()[3] for line in sockets.splitlines() if f"pid={emulator.pid}," in line]
    assert mine == [emulator.endpoint.removeprefix("https://")]


def test_files_are_private(emulator: Emulator) -> None:
    assert stat.S_IMODE(emulator.state_dir.stat().st_mode) == 0o700
    files = [entry for entry in emulator.state_dir.iterdir() if entry.is_file()]
    assert {entry.name for entry in files} == {"ca.pem", "server.pem", "server.key", "client.json", "emulator.log"}
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in files} == {0o600}


def test_secret_is_in_no_command_line(emulator: Emulator) -> None:
    secret = emulator.environment()["AWS_SECRET_ACCESS_KEY"]
    assert secret.encode() not in Path(f"/proc/{emulator.pid}/cmdline").read_bytes()
    assert secret not in emulator.log.read_text()


def test_environment_names_everything_that_clients_need(emulator: Emulator) -> None:
    environment = emulator.environment()
    assert environment["AWS_ENDPOINT_URL"].startswith("https://127.0.0.1:")
    assert environment["AWS_CA_BUNDLE"] == environment["NODE_EXTRA_CA_CERTS"] == str(emulator.ca_certificate)
    assert environment["CDK_DEFAULT_ACCOUNT"] == "000000000000"
    assert {environment[name] for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "CDK_DEFAULT_REGION")} == {"us-east-1"}
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"
    assert client_environment(emulator.state_dir) == environment


@pytest.mark.parametrize(
    "path",
    ["/_ministack/reset", "/_ministack/config", "/_localstack/health", "/_aws/sqs/messages", "/latest/meta-data/"],
)
def test_administration_and_metadata_endpoints_are_closed(emulator: Emulator, path: str) -> None:
    trust = ssl.create_default_context(cafile=emulator.ca_certificate)
    for method in ("GET", "POST"):
        request = urllib.request.Request(emulator.endpoint + path, method=method)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=5, context=trust)


def test_taken_port_is_named_with_its_holder_and_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(EmulatorError) as error:
            Emulator(tmp_path, AWS_PYTHON, port=port).start()
    message = str(error.value)
    assert f"needs port {port} on 127.0.0.1, got: Address already in use" in message
    assert f"process {os.getpid()}" in message
    assert "holdfast local down" in message
    assert not list(tmp_path.iterdir())


def test_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="does not exist; run `make setup`"):
        Emulator(tmp_path, tmp_path / "none/bin/python", port=0).start()


def test_failed_start_shows_the_end_of_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    # This environment has no ministack.
    with pytest.raises(EmulatorError) as error:
        Emulator(tmp_path, Path(sys.executable), port=0).start()
    assert "exited with status 3" in str(error.value)
    assert "the embedded AWS needs ministack 1.5.33, got none; run `make setup`" in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["emulator.log"]


def test_stop_ends_every_process_and_removes_every_file_but_the_log(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path, AWS_PYTHON, port=0)
    emulator.start()
    pid, endpoint = emulator.pid, emulator.endpoint
    assert pid is not None
    emulator.stop()
    assert emulator.pid is None
    assert processes_of(pid) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["emulator.log"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(endpoint.rpartition(":")[2])))
    with pytest.raises(EmulatorError, match="no embedded AWS runs in"):
        emulator.environment()
    emulator.stop()


SLEEPER = "import time\ndef handler(event, context):\n    time.sleep(600)\n"


def test_stop_ends_a_function_that_is_running(tmp_path: Path) -> None:
    emulator = Emulator(tmp_path, AWS_PYTHON, port=0)
    emulator.start()
    pid = emulator.pid
    assert pid is not None
    try:
        cloud, archive = Cloud(emulator), io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("index.py", SLEEPER)
        functions = cloud.client("lambda")
        functions.create_function(
            FunctionName="sleeper",
            Runtime="python3.11",
            Handler="index.handler",
            Role=cloud.role(trust={"Service": "lambda.amazonaws.com"}),
            Code={"ZipFile": archive.getvalue()},
            Timeout=900,
        )
        functions.invoke(FunctionName="sleeper", InvocationType="Event", Payload=b"{}")
        deadline = time.monotonic() + 20
        while len(processes_of(pid)) < 2:
            assert time.monotonic() < deadline, "the function never started"
            time.sleep(0.02)
    finally:
        emulator.stop()
    deadline = time.monotonic() + 5
    while processes_of(pid):
        assert time.monotonic() < deadline, "the function outlived the emulator"
        time.sleep(0.02)


def test_two_emulators_share_neither_state_nor_root(tmp_path: Path, emulator: Emulator) -> None:
    other = Emulator(tmp_path, AWS_PYTHON, port=0)
    other.start()
    try:
        ours, theirs = emulator.environment(), other.environment()
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE"):
            assert ours[name] != theirs[name]
    finally:
        other.stop()


def test_emulator_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from holdfast_local.emulator.process import Emulator
        emulator = Emulator(Path(sys.argv[1]), Path(sys.argv[2]), port=0)
        emulator.start()
        print(emulator.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}/local:{ROOT}/node"}
    command = [sys.executable, "-c", program, str(tmp_path), str(AWS_PYTHON)]
    parent = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    pid = int(parent.stdout)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor):
        assert select.select([descriptor], [], [], 10)[0], "still runs ten seconds after its parent"
