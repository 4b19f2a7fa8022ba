"""Looks at running hosts from outside: their state, commands inside them, connections between them."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_local.hosts.errors import HostNotFoundError, HostsError
from holdfast_local.hosts.isolation import Mode, user_namespace_argv
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.rootfs import CAPABILITIES, PATH
from holdfast_local.hosts.state import LOCK_FILE, STATE_FILE
from holdfast_node import reachability
from holdfast_node.contract.layout import UIDS, User

_PURGE_SECONDS = 60


@dataclass(frozen=True, order=True, kw_only=True)
class Connection:
    """An established TCP connection between two hosts, seen from the one at `local`."""

    local: str
    local_port: int
    remote: str
    remote_port: int


def status(state_dir: Path) -> dict[str, Any] | None:
    """Return the running hypervisor's published state, or None if there is none."""
    try:
        state: dict[str, Any] = json.loads((state_dir / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return state if _runs(state_dir) else None


def exec_in_host(
    state_dir: Path, instance_id: str, argv: Sequence[str], *, user: User | None = None, timeout: float = 30
) -> "subprocess.CompletedProcess[str]":
    """Run a command inside a host, as its root or as one of its users, and return how it ended.

    In a host in namespaces it runs with that host's network, files and processes; on shared loopback it is a plain
    command in the host's directory. It has a minimal environment.

    Raises:
        HostNotFoundError: no such host is running.
    """
    state, host = _find(state_dir, instance_id)
    environment = {"PATH": PATH, "LANG": "C.UTF-8"}
    if state["mode"] == Mode.LOOPBACK:
        prefix: list[str] = []
        directory = Path(host["directory"]) / "disk"
    else:
        prefix = ["nsenter", f"--target={host['pid']}", *_namespaces(host["pid"]), "--root", "--wd=/", "--"]
        directory = Path("/")
        prefix += _drop_privileges(user, separate_users=state["separate_users"])
    return subprocess.run(
        [*prefix, *argv], capture_output=True, text=True, env=environment, cwd=directory, timeout=timeout, check=False
    )


def connections(state_dir: Path) -> list[Connection]:
    """Return the established TCP connections between hosts, each of them twice: as either end sees it.

    What a host holds with itself or with AWS is left out, and so is everything where hosts share a loopback
    interface: there, every host sees every connection.
    """
    state = status(state_dir)
    if state is None or state["mode"] == Mode.LOOPBACK:
        return []
    addresses = {host["address"] for host in state["hosts"]}
    found = set()
    for host in state["hosts"]:
        try:
            table = Path(f"/proc/{host['pid']}/net/tcp").read_text()
        except OSError:
            continue
        for seen in reachability.connections(table):
            (local, local_port), (remote, remote_port) = seen.local, seen.remote
            if seen.up and {local, remote} <= addresses and local != remote:
                found.add(Connection(local=local, local_port=local_port, remote=remote, remote_port=remote_port))
    return sorted(found)


def purge(state_dir: Path) -> None:
    """Remove what hosts have left below a state directory; the hypervisor must not be running.

    With subordinate ids some files belong to ids that only a user namespace can act for, so it is done from one.

    Raises:
        HostsError: a hypervisor is running there, or something cannot be removed.
    """
    if _runs(state_dir):
        state = status(state_dir)
        process = f"process {state['pid']}" if state else "just starting"
        raise HostsError(f"a hypervisor ({process}) runs in {state_dir}; end it first")
    for group in cgroups.of(state_dir):
        cgroups.remove(group.name)
    targets = [state_dir / name for name in ("hosts", "efs", "overlay", STATE_FILE, LOCK_FILE)]
    present = [str(target) for target in targets if target.exists()]
    if not present:
        return
    prefixes: list[list[str]] = [[]]
    if os.geteuid() != 0 and shutil.which("newuidmap"):
        prefixes.append(user_namespace_argv(separate_users=True))
    for prefix in prefixes:
        argv = [*prefix, "rm", "-rf", "--", *present]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=_PURGE_SECONDS, check=False)
        if result.returncode == 0:
            return
    raise HostsError(f"cannot remove {state_dir}'s hosts: {result.stderr.strip().splitlines()[-1]}")


def _runs(state_dir: Path) -> bool:
    """Return whether a hypervisor holds its lock; process ids are used again, a lock ends with its process."""
    try:
        with (state_dir / LOCK_FILE).open() as lock:
            # Shared, so that two who ask are not in each other's way.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _find(state_dir: Path, instance_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    state = status(state_dir)
    running = state["hosts"] if state else []
    for host in running:
        if host["instance_id"] == instance_id and host["pid"]:
            assert state is not None
            return state, host
    raise HostNotFoundError(
        f"no host {instance_id} is running, got {[host['instance_id'] for host in running]}; "
        "instances become hosts while the hypervisor runs"
    )


def _namespaces(pid: int) -> list[str]:
    options = ["--net", "--mount", "--pid", "--ipc", "--uts"]
    if Path(f"/proc/{pid}/ns/cgroup").readlink() != Path("/proc/self/ns/cgroup").readlink():
        options.append("--cgroup")
    if Path(f"/proc/{pid}/ns/user").readlink() == Path("/proc/self/ns/user").readlink():
        return options
    # The machine's root has no id in there and must take the host's; the user who runs the hosts is root there.
    return ["--user", *options] if os.geteuid() == 0 else ["--user", "--preserve-credentials", *options]


def _drop_privileges(user: User | None, *, separate_users: bool) -> list[str]:
    """Return the prefix that leaves a command no more than the host's own root, or than the user's services, have."""
    if user is None:
        bounding = ",".join(f"+{name}" for name in CAPABILITIES)
        return ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,{bounding}", "--"]
    prefix = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    if separate_users:
        groups = f"--groups={UIDS[User.TUNNEL]},{UIDS[User.TRAINER]}" if user is User.AGENT else "--clear-groups"
        prefix += [f"--reuid={UIDS[user]}", f"--regid={UIDS[user]}", groups]
    return [*prefix, "--"]
