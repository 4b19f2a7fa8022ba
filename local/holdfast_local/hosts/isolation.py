"""How well hosts can be kept apart on this machine: found out by trying, not by guessing."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum

from holdfast_local.hosts.errors import IsolationError
from holdfast_local.hosts.machines.trial import image_refusal
from holdfast_local.hosts.machines.trial import refusal as machine_refusal
from holdfast_node.contract.layout import UIDS, User

#: Tools that hosts in namespaces need, and the Debian package that holds each.
NAMESPACE_TOOLS = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "umount": "mount",
    "pivot_root": "util-linux",
    "ip": "iproute2",
    "nft": "nftables",
}
#: What hosts that boot need besides.
BOOT_TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap"}
_PROBE_SECONDS = 20
#: What stands for several modes, and takes the strongest of them that works.
CHOICES = {"auto": ("boot", "root", "userns", "loopback"), "process": ("root", "userns")}

_SHARED = "hosts share this machine's kernel, disk and clock"
_PROCESSES = "hosts are processes, not booted systems: no user data, no systemd, no cloud-init"
_ALWAYS = (
    "checkpoints are a shared directory of this machine: a host asks the file system's address before it mounts them, "
    "and reads and writes past the network",
)
_BOOTED = (
    "the image is Debian, not Amazon Linux, and its mount.efs is a stand-in: neither NFS, nor TLS to the file system, "
    "nor an access point's user id",
    "systemd's TasksMax= and MemoryMax= are not enforced: this machine's control groups are not the hosts'",
)
_ONE_UID = (
    "agent, tunnel and trainer of a host share one user id, so file modes and the node's own per-user firewall rules "
    "do not keep them apart (newuidmap with a subordinate id range for this user would: package uidmap, /etc/subuid)"
)
_LOOPBACK = (
    "no network namespaces: every process of this machine reaches every host, and security groups are not applied, nor "
    "endpoints with their policies, nor the DNS firewall",
    "no mount or process namespaces: hosts see this machine's files, other hosts and the embedded AWS's root keys",
    "no separate users: agent, tunnel and trainer of all hosts run as the user who started them",
    "no node firewall: the firewall service is skipped",
    "the metadata service listens on a loopback address that every process of this machine reaches",
)


class Mode(StrEnum):
    """How hosts are kept apart, strongest first. BOOT boots them; the others run a node's processes only."""

    BOOT = "boot"
    ROOT = "root"
    USERNS = "userns"
    LOOPBACK = "loopback"


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """A mode, whether a host's users have ids of their own, and what is not enforced, in plain words.

    `not_stronger` says why each stronger mode was not taken.
    """

    mode: Mode
    separate_users: bool
    not_enforced: tuple[str, ...]
    not_stronger: tuple[str, ...] = ()

    @property
    def namespaces(self) -> bool:
        """Whether hosts have network, mount and process namespaces."""
        return self.mode is not Mode.LOOPBACK


def isolation(mode: Mode, *, separate_users: bool, not_stronger: tuple[str, ...] = ()) -> Isolation:
    """Return the isolation of a mode, with the list of what it does not enforce."""
    missing = _LOOPBACK if mode is Mode.LOOPBACK else () if separate_users else (_ONE_UID,)
    kind = _BOOTED if mode is Mode.BOOT else (_PROCESSES,)
    return Isolation(
        mode=mode,
        separate_users=separate_users,
        not_enforced=(_SHARED, *kind, *_ALWAYS, *missing),
        not_stronger=not_stronger,
    )


def detect(wanted: str = "auto") -> Isolation:
    """Return the strongest isolation that works here, or the one that is asked for.

    Each mode is tried: namespaces are made, an nftables table is loaded, a process file system is mounted.

    Args:
        wanted: the name of a `Mode`; or `auto` for any, or `process` for those in namespaces that do not boot.

    Raises:
        IsolationError: the mode that is asked for does not work here; the message says what failed.
    """
    if wanted not in (*CHOICES, *Mode):
        raise IsolationError(f"hosts must be one of {', '.join((*CHOICES, *Mode))}, got {wanted!r}")
    reasons: list[str] = []
    for mode in map(Mode, CHOICES.get(wanted, (wanted,))):
        if mode is Mode.LOOPBACK:
            return isolation(mode, separate_users=False, not_stronger=tuple(reasons))
        if (reason := _refusal(mode)) is None:
            return isolation(mode, separate_users=_separate_users(mode), not_stronger=tuple(reasons))
        reasons.append(f"{mode}: {reason}")
    raise IsolationError(
        f"hosts of the kind {wanted!r} do not work on this machine: {'; '.join(reasons)}; "
        "use --hosts auto to take the strongest that does"
    )


def can_boot() -> bool:
    """Return whether hosts can be booted here; the image that they need may still have to be made."""
    return _refusal(Mode.BOOT, image=False) is None


def user_namespace_argv(*, separate_users: bool) -> list[str]:
    """Return the command prefix that enters an own user namespace as its root, keeping the process id."""
    return ["unshare", "--user", "--map-root-user", *(["--map-auto"] if separate_users else []), "--mount"]


def _refusal(mode: Mode, *, image: bool = True) -> str | None:
    """Return why a mode does not work here, or None if it does; `image` says whether hosts' image must be there."""
    tools = NAMESPACE_TOOLS | (BOOT_TOOLS if mode is Mode.BOOT else {})
    if missing := sorted({package for tool, package in tools.items() if shutil.which(tool) is None}):
        return f"tools are missing; install the packages {', '.join(missing)}"
    if mode in (Mode.BOOT, Mode.ROOT) and os.geteuid() != 0:
        return f"needs root, this is uid {os.geteuid()}"
    script = (
        "set -e; mkdir -p /tmp; mount -t tmpfs probe /tmp; mkdir /tmp/proc; mount -t proc proc /tmp/proc; "
        "ip link add probe type veth peer name peer; echo 1 > /proc/sys/net/ipv4/ip_forward; nft add table inet probe"
    )
    if mode is Mode.BOOT:
        return machine_refusal() or (image_refusal() if image else None)
    inner = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    outer = user_namespace_argv(separate_users=False) if mode is Mode.USERNS else []
    return _try([*outer, *inner])


def _separate_users(mode: Mode) -> bool:
    if mode is Mode.USERNS and shutil.which("newuidmap") is None:
        return False
    uid = str(UIDS[User.TRAINER])
    outer = user_namespace_argv(separate_users=True) if mode is Mode.USERNS else []
    return _try([*outer, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "true"]) is None


def _try(argv: list[str]) -> str | None:
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"{argv[0]} ended with status {result.returncode}"
