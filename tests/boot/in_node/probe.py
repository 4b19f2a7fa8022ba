"""Tries what a process of a node may and may not do, from where it runs; prints what came of each, as JSON.

`ok`, or the name of the error.
"""

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_SECONDS = 3.0
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _PTRACE_ATTACH = 0x10000000, 16
_SYS_KEYCTL, _SYS_BPF, _SYS_IO_URING_SETUP = 250, 321, 425  # x86-64
_PROGRAM = "#!/bin/sh\nexit 0\n"


def connect(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
        channel.settimeout(_SECONDS)
        channel.connect((host, port))


def listen(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as channel:
        channel.bind((host, port))
        channel.listen()


def unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.connect(path)


def make_socket(family: int, kind: int) -> None:
    socket.socket(family, kind).close()


def write(path: str) -> None:
    Path(path).write_text("x")
    Path(path).unlink()


def read(path: str) -> None:
    if Path(path).is_dir():
        next(Path(path).iterdir(), None)
    else:
        Path(path).read_bytes()[:1]


def execute_from(directory: str) -> None:
    """Write a program there and start it."""
    program = Path(directory) / "program"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    try:
        subprocess.run([program], check=True)
    finally:
        program.unlink()


def execute(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "call")


def reach(number: int, *arguments: object) -> None:
    """Make a system call; whatever the kernel thinks of its arguments, it was reached."""
    if _LIBC.syscall(number, *arguments) == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        raise OSError(ctypes.get_errno(), "call")


def execute_from_memory() -> None:
    descriptor = os.memfd_create("program", 0)
    os.write(descriptor, Path(os.path.realpath(sys.executable)).read_bytes())
    subprocess.run([f"/proc/self/fd/{descriptor}", "-S", "-c", ""], check=True, pass_fds=[descriptor])


def trace() -> None:
    """Trace a process of its own."""
    if (pid := os.fork()) == 0:
        signal.pause()
    try:
        call(_LIBC.ptrace, _PTRACE_ATTACH, pid, 0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def others() -> None:
    """Read the command line of the node's first process."""
    Path("/proc/1/cmdline").read_bytes()


def fork() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


CHECKS: dict[str, Callable[[], object]] = {
    "connect to the metadata service": lambda: connect("169.254.169.254", 80),
    "connect to AWS": lambda: connect("10.9.0.9", 443),
    "connect to a peer's port": lambda: connect("10.9.0.3", 9092),
    "connect to a peer's other port": lambda: connect("10.9.0.3", 22),
    "connect to the overlay": lambda: connect("127.77.0.1", 9091),
    "connect to another service of the node": lambda: connect("127.0.0.1", 8000),
    "listen on the overlay": lambda: listen("127.77.0.2", 9092),
    "listen on a low port": lambda: listen("127.77.0.2", 80),
    "connect to the system's bus": lambda: unix("/run/dbus/system_bus_socket"),
    "make a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
    "make a packet socket": lambda: make_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "make an IPv6 socket": lambda: make_socket(socket.AF_INET6, socket.SOCK_STREAM),
    "make a UNIX socket": lambda: make_socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "write to /etc": lambda: write("/etc/x"),
    "write to /usr": lambda: write("/usr/x"),
    "write to the bundle": lambda: write("/opt/holdfast/x"),
    "write to /run": lambda: write("/run/x"),
    "write an exit record": lambda: write("/run/holdfast/exit/x.json"),
    "ask for a service": lambda: write("/run/holdfast/start/x"),
    "write to the job": lambda: write("/var/lib/holdfast/job/x"),
    "write to the tunnel's files": lambda: write("/var/lib/holdfast/tls/x"),
    "write to the agent's files": lambda: write("/var/lib/holdfast/agent/x"),
    "write to its scratch space": lambda: write("/var/lib/holdfast/work/x"),
    "write a checkpoint": lambda: write("/mnt/checkpoints/x"),
    "write to /tmp": lambda: write("/tmp/x"),
    "write to /var/log": lambda: write("/var/log/x"),
    "read the job": lambda: read("/var/lib/holdfast/job/launch.json"),
    "read the tunnel's key": lambda: read("/var/lib/holdfast/tls/key.pem"),
    "read the agent's files": lambda: read("/var/lib/holdfast/agent"),
    "read the user data": lambda: read("/var/lib/cloud"),
    "read root's home": lambda: read("/root"),
    "read the passwords": lambda: read("/etc/shadow"),
    "see another process": others,
    "execute from scratch space": lambda: execute_from("/var/lib/holdfast/work"),
    "execute from the checkpoints": lambda: execute_from("/mnt/checkpoints"),
    "execute from /tmp": lambda: execute_from("/tmp"),
    "execute from /dev/shm": lambda: execute_from("/dev/shm"),
    "execute from memory": execute_from_memory,
    "execute a program of the system": lambda: execute("/usr/bin/id"),
    "execute the interpreter": lambda: execute(sys.executable, "-S", "-c", ""),
    "fork": fork,
    "make a user namespace": lambda: call(_LIBC.unshare, _CLONE_NEWUSER),
    "mount": lambda: call(_LIBC.mount, b"x", b"/tmp", b"tmpfs", 0, None),
    "become root": lambda: os.setuid(0),
    "trace a process": trace,
    "signal the node's first process": lambda: os.kill(1, 0),
    "run in real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "map memory to write and execute": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ).close(),
    "load a BPF program": lambda: reach(_SYS_BPF, 5, None, 0),
    "use the kernel's keyring": lambda: reach(_SYS_KEYCTL, 0, -3, 0),
    "set up io_uring": lambda: reach(_SYS_IO_URING_SETUP, 0, None),
    "rename the host": lambda: socket.sethostname("x"),
}


def attempt(check: Callable[[], object]) -> str:
    """Try it in a process of its own: what one of them changes is not the next one's."""
    come, go = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(go, outcome(check).encode())
        os._exit(0)
    os.close(go)
    with os.fdopen(come) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


def outcome(check: Callable[[], object]) -> str:
    try:
        check()
    except subprocess.CalledProcessError as error:
        return f"status {error.returncode}"
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def report() -> str:
    return "PROBE " + json.dumps({name: attempt(check) for name, check in CHECKS.items()})


if __name__ == "__main__":
    print(report(), flush=True)
