"""The emulator as a process: started, awaited, described to clients, and ended with everything it started."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import string
import subprocess
from collections.abc import Mapping, Sequence
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

from holdfast_local.emulator.certificates import make_certificates, write_private
from holdfast_local.emulator.errors import EmulatorError, last_lines
from holdfast_local.emulator.names import RECORD_VARIABLE, certified_names
from holdfast_local.mark import own_mark

ADDRESS = "127.0.0.1"
ACCOUNT = "000000000000"
DEFAULT_PORT = 4566
START_LIMIT_SECONDS = 60.0
STOP_LIMIT_SECONDS = 5.0
#: This file is <root>/local/holdfast_local/emulator/process.py.
_SOURCE_ROOTS = tuple(str(Path(__file__).parents[3] / name) for name in ("local", "node"))
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_CERTIFIED_NAMES = ("localhost", "*.localhost", ADDRESS)


class Emulator:
    """One embedded AWS, on loopback only, that ends with the thread that started it.

    Everything it writes is below `state_dir` (created with mode 0700). `aws_python` is the interpreter of the
    environment that holds ministack. Port 0 takes any free port. `extra_names` are further DNS names or addresses
    that the server's certificate is valid for, where clients reach it through a relay.
    """

    def __init__(
        self,
        state_dir: Path,
        aws_python: Path,
        port: int = DEFAULT_PORT,
        region: str = "us-east-1",
        *,
        extra_names: Sequence[str] = (),
    ) -> None:
        self.state_dir = state_dir.absolute()
        self.region = region
        self.log = self.state_dir / "emulator.log"
        # Not resolved: a virtual environment's interpreter is a symbolic link that means its environment.
        self._python = aws_python.absolute()
        self._port = port
        self._extra_names = tuple(extra_names)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The emulator's process id, which is also its process group's; None when this object runs none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def endpoint(self) -> str:
        """The URL that answers for every AWS service."""
        return f"https://{ADDRESS}:{self._port}"

    @property
    def ca_certificate(self) -> Path:
        """The certificate that clients trust."""
        return self.state_dir / "ca.pem"

    def start(self) -> None:
        """Start the emulator and return once it answers.

        Raises:
            EmulatorError: the port is taken, the interpreter is missing, or it did not answer in time; the message
                ends with the last lines of its log.
        """
        if self._process is not None:
            raise EmulatorError(f"the embedded AWS of {self.state_dir} was started already; stop it first")
        if not self._python.exists():
            raise EmulatorError(f"the embedded AWS needs {self._python}, which does not exist; run `make setup`")
        with _listen(self._port) as listener:
            self._port = listener.getsockname()[1]
            self._prepare()
            self._spawn(listener)
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the emulator and the functions it runs, and remove every file but its log; harmless when it is down."""
        if self._process is not None:
            _end_group(self._process)
            self._process = None
        for name in ("ca.pem", "server.pem", "server.key", "client.json"):
            (self.state_dir / name).unlink(missing_ok=True)
        for name in ("tmp", "home"):
            shutil.rmtree(self.state_dir / name, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return the variables that make AWS clients, the CDK included, use this emulator as its root user.

        Another process gets them from the same `state_dir` while the emulator runs.

        Raises:
            EmulatorError: no emulator runs in `state_dir`.
        """
        return client_environment(self.state_dir)

    def _prepare(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.state_dir.chmod(0o700)
        for name in ("tmp", "home"):
            (self.state_dir / name).mkdir(exist_ok=True)
        make_certificates(self.state_dir, (*_CERTIFIED_NAMES, *certified_names(self.region), *self._extra_names))
        alphabet = string.ascii_uppercase + string.digits
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_CA_BUNDLE": str(self.ca_certificate),
            "NODE_EXTRA_CA_CERTS": str(self.ca_certificate),
            "AWS_ACCESS_KEY_ID": "AKIA" + "".join(secrets.choice(alphabet) for _ in range(16)),
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(32),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "CDK_DEFAULT_ACCOUNT": ACCOUNT,
            "CDK_DEFAULT_REGION": self.region,
            "CDK_DISABLE_CLI_TELEMETRY": "true",
            **_unproxied(os.environ),
        }
        write_private(self.state_dir / "client.json", json.dumps(variables).encode())

    def _spawn(self, listener: socket.socket) -> None:
        environment = self.environment() | self._server_settings(listener)
        with self.log.open("wb") as log:
            self.log.chmod(0o600)
            # A session of its own: one signal to the group reaches the functions too, and a ^C in the terminal
            # reaches none of them, so that the command that started it can clean up in order.
            self._process = subprocess.Popen(
                [self._python, "-m", "holdfast_local.emulator.server"],
                cwd=self.state_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )

    def _server_settings(self, listener: socket.socket) -> dict[str, str]:
        """Return the server's own variables; nothing else of this process's environment reaches it."""
        return {
            **own_mark(),
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(self.state_dir / "home"),
            "TMPDIR": str(self.state_dir / "tmp"),
            "PYTHONPATH": os.pathsep.join(_SOURCE_ROOTS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "HOLDFAST_LISTENER": str(listener.fileno()),
            "HOLDFAST_PARENT": str(os.getpid()),
            "AUTH": "true",
            "USE_SSL": "1",
            "MINISTACK_SSL_CERT": str(self.state_dir / "server.pem"),
            "MINISTACK_SSL_KEY": str(self.state_dir / "server.key"),
            "MINISTACK_HOST": ADDRESS,
            "MINISTACK_REGION": self.region,
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "GATEWAY_PORT": str(self._port),
            "BIND_HOST": ADDRESS,
            "S3_DATA_DIR": str(self.state_dir / "tmp"),
            "STATE_DIR": str(self.state_dir / "tmp"),
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "INFO",
            **{name: os.environ[name] for name in (RECORD_VARIABLE,) if name in os.environ},
        }

    def _await_answer(self) -> None:
        """Wait for the health check. The listener exists before the process does, so one request waits for it all."""
        trust = ssl.create_default_context(cafile=self.ca_certificate)
        connection = HTTPSConnection(ADDRESS, self._port, timeout=START_LIMIT_SECONDS, context=trust)
        try:
            connection.request("GET", "/_ministack/health")
            status = connection.getresponse().status
        except (OSError, HTTPException) as error:
            raise EmulatorError(self._failure(error)) from None
        finally:
            connection.close()
        if status != 200:
            raise EmulatorError(self._failure(f"health check answered {status}"))

    def _failure(self, cause: object) -> str:
        process = self._process
        try:
            # Its socket can close an instant before the process has ended; the exit status says more.
            code = process.wait(timeout=1) if process else None
        except subprocess.TimeoutExpired:
            code = None
        got = f"exited with status {code}" if code is not None else f"did not answer: {cause}"
        return f"the embedded AWS {got}; its log {self.log} ends with:\n{last_lines(self.log)}"


def client_environment(state_dir: Path) -> dict[str, str]:
    """Return the client variables of the emulator that runs in `state_dir`; raises EmulatorError when none does."""
    try:
        variables: dict[str, str] = json.loads((state_dir / "client.json").read_bytes())
    except FileNotFoundError:
        raise EmulatorError(f"no embedded AWS runs in {state_dir}; start it with `holdfast local up`") from None
    return variables


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without any AWS setting, so that no real account can be reached by mistake."""
    return {name: value for name, value in environment.items() if not name.startswith(("AWS_", "CDK_"))}


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without proxies, for a process that talks to this machine only."""
    return {name: value for name, value in environment.items() if name.lower() not in _PROXIES}


def _unproxied(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which clients reach the emulator without a proxy, beside what they reach so already."""
    known = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    value = ",".join(dict.fromkeys([*filter(None, known.split(",")), ADDRESS, "localhost"]))
    return {"NO_PROXY": value, "no_proxy": value}


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise EmulatorError(
            f"the embedded AWS needs port {port} on {ADDRESS}, got: {error.strerror} ({_holder(port)}); "
            "end that process (`holdfast local down` if it is an older cluster), or choose another port"
        ) from None
    return listener


def _holder(port: int) -> str:
    """Return who listens on `port`, as far as this user may know."""
    ss = shutil.which("ss")
    if ss is None:
        return "holder unknown"
    query = [ss, "-Hltnp", f"sport = :{port}"]
    found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=5).stdout
    _, _, users = found.partition("users:((")
    name, _, rest = users.partition(",")
    pid = rest.partition("pid=")[2].partition(",")[0]
    return f"held by {name.strip(chr(34))}, process {pid}" if pid else "held by another user's process"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its group: politely, then for certain, with whatever is left of the group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=STOP_LIMIT_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=STOP_LIMIT_SECONDS)
