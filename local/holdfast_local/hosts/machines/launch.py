"""The launcher of a booted machine: mounts its disk and runs systemd-nspawn, again after every reboot.

It is process 1 of a process namespace of its own, and its mounts are in a mount namespace of its own: when it dies,
however it dies, the machine dies with it and no mount is left. It has the standard library only and reads a
`MachineSetup` from standard input once the machine's network is there. What the machine tells of itself (its boot
record, cloud-init's result, its units' control groups) goes to standard output as events.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.machines.following import Follower
from holdfast_local.hosts.machines.setup import MachineSetup
from holdfast_local.hosts.rootfs import mount

#: systemd-nspawn's exit status when the machine wants to be booted again and something else must do it.
REBOOT = 133
_TICK_SECONDS = 0.2
#: cloud-init takes a machine for an EC2 instance (and speaks IMDSv2) by what the hypervisor calls it:
#: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html
_HYPERVISOR_UUID = "ec2e1916-9099-7caf-fd21-012345abcdef\n"
#: Where `mount.efs` finds the shared file system, and whom it asks before it shows it.
SHARED_DISK, MOUNT_SOCKET = "/run/efs/disk", "/run/efs/mount-target"
_CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
#: The groups, devices and calls beyond nspawn's own that systemd's sandboxing of services needs: BPF for
#: IPAddressDeny= and DeviceAllow=, keyrings, locked memory; and the network, which is the machine's own.
_CAPABILITIES = "CAP_BPF,CAP_PERFMON,CAP_IPC_LOCK,CAP_NET_ADMIN"
_CALLS = "bpf @keyring @memlock"


def main() -> int:
    """Run the machine until it powers off; return 0 if it did so by itself."""
    tell({"event": "namespaces"})
    line = sys.stdin.readline()
    if not line:
        sys.exit("the hypervisor went away before the machine had a network")
    setup = MachineSetup.parse(line)
    os.umask(0o022)
    tree = mount_disk(setup)
    write_identity(setup, tree)
    cgroups.join(setup.cgroup)
    while True:
        tell({"event": "phase", "phase": "booting"})
        if (status := run(setup, tree)) != REBOOT:
            return status


def tell(event: dict[str, str]) -> None:
    """Send an event to the hypervisor."""
    print(json.dumps(event), flush=True)


def mount_disk(setup: MachineSetup) -> Path:
    """Mount the machine's disk, its own writes above the image's layers, and return where."""
    directory = Path(setup.directory)
    upper, work, tree = (directory / name for name in ("disk", "overlay", "tree"))
    for path in (upper, work, tree):
        path.mkdir(exist_ok=True)
    upper.chmod(0o755)  # it is the machine's root directory, whatever mask the hypervisor was started with
    options = f"lowerdir={':'.join(setup.layers)},upperdir={upper},workdir={work}"
    mount("overlay", tree, kind="overlay", options=options)
    # nspawn leaves a lock and a propagation directory per machine here when it is killed.
    Path("/run/systemd").mkdir(exist_ok=True)
    mount("holdfast", Path("/run/systemd"), kind="tmpfs", options="mode=755")
    return tree


def write_identity(setup: MachineSetup, tree: Path) -> None:
    """Make the image this cluster's: it trusts the embedded AWS's certificate, as an instance trusts Amazon's."""
    bundle = tree / _CA_BUNDLE
    bundle.write_bytes(bundle.read_bytes() + Path(setup.ca_file).read_bytes())
    settings = tree / "etc/systemd/system.conf.d/50-embedded-aws.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"[Manager]\nDefaultEnvironment=AWS_CA_BUNDLE=/{_CA_BUNDLE}\n")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    (tree / "etc/resolv.conf").write_text(f"nameserver {setup.resolver}\noptions timeout:2 attempts:3\n")
    (tree / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {setup.hostname}\n")
    (Path(setup.directory) / "hypervisor-uuid").write_text(_HYPERVISOR_UUID)


def nspawn_argv(setup: MachineSetup, tree: Path) -> list[str]:
    """Return the command that boots the machine in this process's network and control group."""
    return [
        "systemd-nspawn",
        "--boot",
        f"--directory={tree}",
        f"--machine={setup.instance_id}",
        "--register=no",
        "--keep-unit",
        "--network-namespace-path=/proc/self/ns/net",
        "--console=read-only",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--kill-signal=SIGRTMIN+3",
        f"--capability={_CAPABILITIES}",
        f"--system-call-filter={_CALLS}",
        f"--bind-ro={setup.directory}/hypervisor-uuid:/sys/hypervisor/uuid",
        f"--bind={setup.shared_disk}:{SHARED_DISK}",
        f"--bind={setup.mount_socket}:{MOUNT_SOCKET}",
    ]


def run(setup: MachineSetup, tree: Path) -> int:
    """Boot the machine and tell what it does until it ends; return systemd-nspawn's exit status."""
    environment = {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    }
    follower = Follower(setup, tree, tell)
    # The console goes where this process's own errors go: both are what the machine's screen would show.
    process = subprocess.Popen(nspawn_argv(setup, tree), stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    while process.poll() is None:
        follower.tick()
        time.sleep(_TICK_SECONDS)
    follower.tick()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
