"""The scratch volume: a blank volume of the instance's own becomes the trainer's work directory, once.

Root runs this at boot, before any service: `python -m holdfast_node.scratch` ends with status 1 and says why on the
lines `cause: …` and `remedy: …`. What is on the volume is as encrypted as EBS keeps it (the cluster's key),
and goes with the instance. From the entry in fstab systemd mounts it again after a reboot, with what was on it.
"""

import argparse
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from holdfast_node.boot import step
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths

#: The file system's label: what fstab mounts, whatever the device is called after a reboot.
LABEL = "holdfast-work"
#: A volume of the launch template is attached before the instance starts; udev may not have linked it yet.
WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.2
_COMMAND_SECONDS = 120
#: The trainer writes here and nothing of it runs; the sandbox says the same once more.
_OPTIONS = "nosuid,nodev,noexec,noatime,x-systemd.device-timeout=60"
#: blkid: nothing was recognised (blkid(8), "Exit status").
_NOTHING = 2


class ScratchError(HoldfastError):
    """There is no scratch volume, or it is not one to write over."""


def prepare(device: Path, directory: Path, *, fstab: Path = Path("/etc/fstab"), wait: float = WAIT_SECONDS) -> None:
    """Mount the volume `device` at `directory`, which exists; make its file system if it is blank.

    The directory keeps its owner and mode. Doing it twice changes nothing.

    Raises:
        ScratchError: no such device within `wait` seconds, it holds something else, or a tool failed.
    """
    _await(device, wait)
    held = _contents(device)
    if held is None:
        # No blocks kept for root: nobody but the trainer writes here.
        _run("mkfs.ext4", "-q", "-m", "0", "-L", LABEL, str(device))
    elif held != LABEL:
        raise ScratchError(
            f"the scratch volume {device} must be blank, got {held}; it is not written over: give the launch template "
            "a volume without a snapshot"
        )
    entry = f"LABEL={LABEL} {directory} ext4 {_OPTIONS} 0 2"
    lines = fstab.read_text().splitlines() if fstab.exists() else []
    if entry not in lines:
        fstab.write_text("\n".join([*lines, entry, ""]))
    if directory.is_mount():
        return
    beneath = directory.stat()
    _run("mount", "-t", "ext4", "-o", _OPTIONS, str(device), str(directory))
    lost = directory / "lost+found"
    if lost.is_dir():
        lost.rmdir()  # a trainer's work directory is empty when its job begins
    os.chown(directory, beneath.st_uid, beneath.st_gid)
    directory.chmod(stat.S_IMODE(beneath.st_mode))


def _await(device: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not device.is_block_device():
        if time.monotonic() >= deadline:
            raise ScratchError(
                f"the scratch volume {device} did not appear within {seconds:.0f} s; look at the launch template's "
                "block device mappings, and that the image links EBS volumes' names (amazon-ec2-utils)"
            )
        time.sleep(_POLL_SECONDS)


def _contents(device: Path) -> str | None:
    """Return what is on a device: None if it is blank, `LABEL` if it is ours, or some words."""
    probe = _tool("blkid", "--probe", "--output", "export", str(device))
    if probe.returncode == _NOTHING:
        return None
    found = dict(line.split("=", 1) for line in probe.stdout.splitlines() if "=" in line)
    if probe.returncode != 0:
        raise ScratchError(f"cannot tell what is on {device}: {probe.stderr.strip()[:200] or probe.returncode}")
    if (found.get("TYPE"), found.get("LABEL")) == ("ext4", LABEL):
        return LABEL
    kind = found.get("TYPE") or found.get("PTTYPE") or "something"
    return f"{kind} {found.get('LABEL', '')!r}"


def _run(*command: str) -> None:
    done = _tool(*command)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ScratchError(f"{command[0]} failed: {lines[-1] if lines else done.returncode}")


def _tool(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ScratchError(f"{command[0]} failed: {error}") from None


def _prepare_node(config: NodeConfig, paths: NodePaths) -> None:
    if config.scratch_device:
        prepare(Path(config.scratch_device), paths.work)


def main() -> int:
    """Prepare this node's scratch volume, if its configuration names one."""
    argparse.ArgumentParser(prog="python -m holdfast_node.scratch", description=main.__doc__).parse_args()
    remedy = "correct the launch template's volumes, or set scratch_gib = 0 in the settings"
    return step(_prepare_node, Path("/"), remedy)


if __name__ == "__main__":
    sys.exit(main())
