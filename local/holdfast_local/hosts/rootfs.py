"""The first process of a host in namespaces: gives it a file system tree of its own and becomes its init.

The tree is an allow-list on an empty tmpfs: the machine's `/usr` and interpreter read-only, a few files of
`/etc`, the instance's own volume and the shared file system. The machine's homes, this repository, the state
directory and the embedded AWS's root keys are not in it. It runs as root of its namespaces, with the standard
library only, and reads a `HostSetup` from standard input once the network is there.
"""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import holdfast_local
import holdfast_node
from holdfast_local.hosts.setup import BUNDLE, CA_BUNDLE, HOST_CODE, SETUP_FILE, VENV, HostSetup
from holdfast_local.mark import own_mark
from holdfast_node.contract.layout import UIDS, NodePaths

# <sys/mount.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 8, 32, 4096, 16384
_MNT_DETACH = 2
_KEPT_FLAGS = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_CONFIGURATION = (
    "alternatives",
    "ca-certificates.conf",
    "crypto-policies",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
#: What a host's own init may do: serve its users, its directories and its firewall. Not: mounts, devices, modules,
#: other processes' memory, or anything of the machine.
CAPABILITIES = (
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "net_admin",
    "net_bind_service",
    "net_raw",
    "setgid",
    "setpcap",
    "setuid",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Build the host's tree, enter it, and become its init."""
    print(json.dumps({"event": "namespaces"}), flush=True)
    line = sys.stdin.readline()
    if not line:
        sys.exit("the hypervisor went away before the host had a network")
    setup = HostSetup.parse(line)
    os.umask(0o022)  # the tree is the services' too, whatever mask the hypervisor was started with
    socket.sethostname(setup.hostname)
    tree = Path(setup.disk).parent / "tree"
    tree.mkdir(exist_ok=True)
    build(tree, setup)
    enter(tree)
    python = f"/{VENV}/bin/{Path(sys.executable).name}"
    bounding = ",".join(f"+{name}" for name in CAPABILITIES)
    argv = ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{bounding}", "--", python]
    argv += ["-m", "holdfast_local.hosts.init", "--setup", f"/{SETUP_FILE}"]
    environment = own_mark() | {"PATH": PATH, "LANG": "C.UTF-8", "PYTHONPATH": f"/{HOST_CODE}"}
    os.execvpe("setpriv", argv, environment | {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"})  # noqa: S606 - fixed arguments


def build(tree: Path, setup: HostSetup) -> None:
    """Mount the host's whole file system below `tree`."""
    mount("tmpfs", tree, kind="tmpfs", options="mode=755,size=64m", flags=_MS_NOSUID | _MS_NODEV)
    for name in _SYSTEM:
        _mirror(Path("/", name), tree / name)
    for name in _CONFIGURATION:
        _mirror(Path("/etc", name), tree / "etc" / name)
    for prefix in {Path(sys.base_prefix), Path(sys.base_prefix).resolve()}:
        if not prefix.is_relative_to("/usr"):
            bind(prefix, tree / prefix.relative_to("/"))
    bind(Path(sys.prefix), tree / VENV)
    for package in (holdfast_local, holdfast_node):
        source = Path(str(package.__file__)).parent
        bind(source, tree / HOST_CODE / source.name)
    _devices(tree)
    for name in ("tmp", "dev/shm"):
        (tree / name).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", tree / name, kind="tmpfs", options="mode=1777,size=1g", flags=_MS_NOSUID | _MS_NODEV)
    (tree / "proc").mkdir()
    mount("proc", tree / "proc", kind="proc", flags=_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _identity(tree, setup)
    # Owners and modes are the init's work, from inside.
    inside, disk = NodePaths(tree), NodePaths(Path(setup.disk))
    for target in (inside.config.parent, inside.state.parent, inside.logs, inside.run, tree / BUNDLE):
        source = disk.root / target.relative_to(tree)
        source.mkdir(parents=True, exist_ok=True)
        bind(source, target, writable=True)
    bind(Path(setup.shared_disk), inside.checkpoints, writable=True)
    if setup.ca_file is not None:
        shutil.copyfile(setup.ca_file, tree / CA_BUNDLE)
        (tree / CA_BUNDLE).chmod(0o644)
    (tree / SETUP_FILE).write_bytes(setup.to_json())


def enter(tree: Path) -> None:
    """Make `tree` the root of this mount namespace and let go of the machine's own."""
    old = tree / ".old"
    old.mkdir()
    os.chdir(tree)
    subprocess.run(["pivot_root", ".", ".old"], check=True, timeout=10)
    os.chdir("/")
    _check(_libc.umount2(b"/.old", _MNT_DETACH), "unmount the machine's root")
    Path("/.old").rmdir()


def bind(source: Path, target: Path, *, writable: bool = False) -> None:
    """Show `source` at `target`, read-only unless `writable`."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, flags=_MS_BIND | _MS_REC)
    # A user namespace may not lift flags that the mount has already: keep them.
    kept = os.statvfs(target).f_flag & _KEPT_FLAGS
    flags = _MS_REMOUNT | _MS_BIND | _MS_NOSUID | kept | (0 if writable else _MS_RDONLY)
    mount("none", target, flags=flags | (_MS_NODEV if source.is_dir() else 0))


def mount(source: str, target: Path, *, kind: str | None = None, options: str | None = None, flags: int = 0) -> None:
    """Do what the system call of that name does, and nothing more.

    Raises:
        OSError: the kernel refuses; the message names the target.
    """
    encoded = [None if text is None else text.encode() for text in (source, str(target), kind, options)]
    _check(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mirror(source: Path, target: Path) -> None:
    """Show a part of the machine's system read-only; a symbolic link stays one; what does not exist is left out."""
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.readlink())
    elif source.exists():
        bind(source, target)


def _devices(tree: Path) -> None:
    for name in _DEVICES:
        with contextlib.suppress(OSError):  # /dev/tty may be missing; nothing on a node needs it
            bind(Path("/dev", name), tree / "dev" / name, writable=True)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (tree / "dev" / name).symlink_to(f"/proc/self/{target}")


def _identity(tree: Path, setup: HostSetup) -> None:
    users = [("root", 0, "/"), *((user.value, uid, "/nonexistent") for user, uid in UIDS.items())]
    users.append(("nobody", 65534, "/nonexistent"))
    etc = tree / "etc"
    (etc / "passwd").write_text("".join(f"{n}:x:{i}:{i}:{n}:{home}:/usr/sbin/nologin\n" for n, i, home in users))
    (etc / "group").write_text("".join(f"{name}:x:{number}:\n" for name, number, _ in users))
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {setup.hostname}\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    if setup.resolver is not None:
        (etc / "resolv.conf").write_text(f"nameserver {setup.resolver}\n")
    (etc / "hostname").write_text(f"{setup.hostname}\n")
    for name in ("run", "var/tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "var/tmp").chmod(0o1777)


if __name__ == "__main__":
    main()
