"""Packing: the same files give the same bytes, and nothing but plain files gets in."""

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from holdfast_cli import packing
from holdfast_cli.errors import PackError
from holdfast_cli.packing import pack


def packed(directory: Path) -> bytes:
    out = io.BytesIO()
    pack(directory, out)
    return out.getvalue()


def test_same_files_give_the_same_bytes_whatever_their_times_order_and_owner(project, tmp_path) -> None:
    first = packed(project)
    copy = tmp_path / "another name"
    (copy / "lib").mkdir(parents=True)
    (copy / "train.py").write_text("print('hello')\n")
    (copy / "lib/data.py").write_text("DATA = 1\n")
    os.utime(copy / "train.py", (1, 1))
    (copy / "train.py").chmod(0o600)
    if os.getuid() == 0:
        os.chown(copy / "lib/data.py", 1234, 1234)
    assert packed(copy) == first


def test_one_changed_byte_changes_the_digest(project) -> None:
    before = pack(project, io.BytesIO())
    (project / "train.py").write_text("print('hellp')\n")
    assert pack(project, io.BytesIO()).sha256 != before.sha256


def test_entries_have_no_owner_no_time_and_a_plain_mode(project) -> None:
    (project / "run.sh").touch(0o4755)
    with tarfile.open(fileobj=io.BytesIO(packed(project))) as archive:
        facts = [(entry.name, entry.mode, entry.mtime, entry.uid, entry.gid, entry.uname) for entry in archive]
    assert facts == [
        ("lib/data.py", 0o644, 0, 0, 0, ""),
        ("run.sh", 0o755, 0, 0, 0, ""),
        ("train.py", 0o644, 0, 0, 0, ""),
    ]


def test_version_control_environments_and_caches_are_left_out(project) -> None:
    before = packed(project)
    for name in packing.EXCLUDED:
        (project / "lib" / name).mkdir()
        (project / "lib" / name / "x").write_text("x")
    (project / ".git").write_text("gitdir: elsewhere")
    assert packed(project) == before


def link(project: Path) -> None:
    (project / "data").symlink_to("/etc")


def dangling(project: Path) -> None:
    (project / "data").symlink_to("nowhere")


def inner(project: Path) -> None:
    (project / "data").symlink_to("train.py")


def fifo(project: Path) -> None:
    os.mkfifo(project / "data")


def unix_socket(project: Path) -> None:
    here = Path.cwd()
    os.chdir(project)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("data")
    os.chdir(here)


def newline(project: Path) -> None:
    (project / "a\nb").touch()


REFUSALS = {
    "a link out of the directory": (link, "data is a symbolic link to /etc; links are not packed"),
    "a dangling link": (dangling, "data is a symbolic link to nowhere; links are not packed"),
    "a link inside the directory": (inner, "data is a symbolic link to train.py; links are not packed"),
    "a pipe": (fifo, "data is neither a file nor a directory; remove it"),
    "a socket": (unix_socket, "data is neither a file nor a directory; remove it"),
    "a name with a newline": (newline, r"the file name 'a\\nb' has unprintable characters; rename it"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_pack_refuses(name: str, project: Path) -> None:
    make, message = REFUSALS[name]
    make(project)
    with pytest.raises(PackError, match=message):
        packed(project)


def test_too_many_bytes_are_refused_with_the_largest_files(project, monkeypatch) -> None:
    monkeypatch.setattr(packing, "MAX_CODE_BYTES", 3 * 1024**2)
    with (project / "data.bin").open("wb") as file:
        file.truncate(3 * 1024**2 + 1)
    expected = r"code must be at most 3 MiB in 10000 files, got 3 MiB in 3 files in .*; the largest: data.bin \(3 MiB\)"
    with pytest.raises(PackError, match=expected):
        packed(project)


def test_too_many_files_are_refused(project, monkeypatch) -> None:
    monkeypatch.setattr(packing, "MAX_CODE_FILES", 1)
    with pytest.raises(PackError, match="in 1 files, got 0 MiB in 2 files"):
        packed(project)


def test_exactly_the_limit_is_packed(project, monkeypatch) -> None:
    monkeypatch.setattr(packing, "MAX_CODE_FILES", 2)
    assert packed(project)
