"""The scratch volume, on real block devices: files behind the loop driver."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_node import scratch
from holdfast_node.contract.layout import UIDS, User

MIB = 1 << 20
MakeDevice = Callable[..., Path]


@pytest.fixture
def make_device(tmp_path: Path) -> Iterator[MakeDevice]:
    """Make block devices of 32 MiB, and a link to each as a volume's name on Amazon Linux is one."""
    if os.geteuid() or not shutil.which("losetup"):
        pytest.skip("block devices need root and losetup")
    made: list[str] = []

    def make(content: bytes = b"") -> Path:
        number = len(made)
        file, link = tmp_path / f"volume{number}", tmp_path / f"sd{number}"
        file.write_bytes(content)
        os.truncate(file, 32 * MIB)
        found = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"this machine gives out no loop devices: {found.stderr.strip()}")
        made.append(found.stdout.strip())
        link.symlink_to(made[-1])
        return link

    yield make
    for device in made:
        subprocess.run(["umount", "--all-targets", "--quiet", device], check=False)
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    os.chown(directory, UIDS[User.TRAINER], UIDS[User.AGENT])
    directory.chmod(0o2750)
    return directory


def options(directory: Path) -> set[str]:
    (line,) = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines() if f" {directory} " in line]
    return {line[2], *line[3].split(",")}


def test_a_blank_volume_becomes_the_work_directory_with_its_owner_and_mode(
    make_device: MakeDevice, work: Path, tmp_path: Path
) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text("LABEL=/ / xfs defaults 0 0\n")
    scratch.prepare(make_device(), work, fstab=fstab)
    assert {"ext4", "nosuid", "nodev", "noexec"} <= options(work)
    assert (work.stat().st_uid, work.stat().st_gid) == (UIDS[User.TRAINER], UIDS[User.AGENT])
    assert work.stat().st_mode & 0o7777 == 0o2750
    assert list(work.iterdir()) == []
    first, entry = fstab.read_text().splitlines()
    assert first == "LABEL=/ / xfs defaults 0 0"
    assert entry.split()[:3] == ["LABEL=holdfast-work", str(work), "ext4"]


def test_a_second_boot_finds_what_the_first_left(make_device: MakeDevice, work: Path, tmp_path: Path) -> None:
    device, fstab = make_device(), tmp_path / "fstab"
    scratch.prepare(device, work, fstab=fstab)
    (work / "kept").write_text("x")
    scratch.prepare(device, work, fstab=fstab)
    subprocess.run(["umount", work], check=True)
    assert not (work / "kept").exists()
    scratch.prepare(device, work, fstab=fstab)
    assert (work / "kept").read_text() == "x"
    assert len(fstab.read_text().splitlines()) == 1


def test_a_volume_with_something_on_it_is_not_written_over(make_device: MakeDevice, work: Path, tmp_path: Path) -> None:
    device = make_device()
    subprocess.run(["mkfs.ext4", "-q", "-L", "precious", device], check=True)
    before = device.read_bytes()
    with pytest.raises(scratch.ScratchError, match=r"sd0 must be blank, got ext4 'precious'; it is not written over"):
        scratch.prepare(device, work, fstab=tmp_path / "fstab")
    assert device.read_bytes() == before
    assert not work.is_mount() and not (tmp_path / "fstab").exists()


def test_a_volume_that_is_not_there_is_named(work: Path, tmp_path: Path) -> None:
    with pytest.raises(scratch.ScratchError, match=r"/dev/sdz did not appear within 0 s; look at the launch template"):
        scratch.prepare(Path("/dev/sdz"), work, fstab=tmp_path / "fstab", wait=0.3)


def test_a_file_is_no_volume(work: Path, tmp_path: Path) -> None:
    (tmp_path / "sdb").write_bytes(bytes(MIB))
    with pytest.raises(scratch.ScratchError, match="did not appear"):
        scratch.prepare(tmp_path / "sdb", work, fstab=tmp_path / "fstab", wait=0)
