"""One booted machine of the hypervisor."""

import shutil
from pathlib import Path

from holdfast_local.hosts.host import Host, Setup
from holdfast_local.hosts.machines import cgroups
from holdfast_local.hosts.processes import children

_NSPAWN_DEPTH = 3


class Machine(Host):
    """A host that boots. Its launcher's child is systemd-nspawn, and that one's child is the machine's process 1."""

    @property
    def cgroup(self) -> str:
        """The name of its control group in every hierarchy."""
        return f"{cgroups.prefix(self.directory.parent.parent)}{self.instance.instance_id}"

    @property
    def powered_off(self) -> bool:
        """Whether it has ended by itself, and in order."""
        return self._process is not None and not self._killed and self._process.poll() == 0

    @property
    def mount_socket(self) -> Path:
        """Where its `mount.efs` asks."""
        return self.directory / "mount-target"

    def init_pid(self) -> int:
        """Return the id of the machine's process 1 as this machine counts, or 0 while there is none."""
        pid = self.launcher_pid
        for _ in range(_NSPAWN_DEPTH):
            pid = next(iter(children(pid)), 0) if pid else 0
        return pid

    def kill(self) -> None:
        """Switch the machine off at once, and keep of its disk only the logs."""
        super().kill()
        cgroups.remove(self.cgroup)
        for name in ("overlay", "tree"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        (self.directory / ".#tree.lck").unlink(missing_ok=True)  # systemd-nspawn's, beside what it boots

    def _argv(self, setup: Setup) -> list[str]:
        own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        module = [setup.python, "-m", "holdfast_local.hosts.machines.launch"]
        return ["setpriv", "--pdeathsig=KILL", *own, *module]
