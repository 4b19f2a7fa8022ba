"""Checkpoints are whole or not there."""

import fcntl
import hashlib
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast_node import checkpoints
from holdfast_node.checkpoints import CheckpointError
from holdfast_node.contract.documents import Retention
from holdfast_node.manifests import Manifest, describe

WRITER = """
import itertools, sys
from pathlib import Path
from holdfast_node import checkpoints
from holdfast_node.contract.documents import Retention
directory = Path(sys.argv[1])
start = len(list(directory.glob("step-*"))) + int(sys.argv[2])
print("ready", flush=True)
for number in itertools.count(start):
    def write(folder):
        (folder / "sub").mkdir()
        for name in ("weights", "sub/states"):
            with (folder / name).open("w") as file:
                for _ in range(200):
                    file.write(f"{number:08d}" * 100)
    checkpoints.save(directory, f"step-{number:08d}", write, retention=Retention(keep_last=2))
"""


def write(text: str) -> Callable[[Path], None]:
    def into(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "weights").write_text(text)
        (folder / "sub/states").write_text(text)

    return into


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith(".lock"))


def test_a_checkpoint_is_saved_found_and_pointed_to(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    first = checkpoints.save(directory, "one", write("1"))
    assert checkpoints.latest(directory) == first
    second = checkpoints.save(directory, "two", write("2"))
    assert checkpoints.latest(directory) == second
    assert (directory / "latest").resolve() == second.resolve()
    assert (second / "sub/states").read_text() == "2"


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "absent") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for number in (9, 10, 8, 11):  # by the order of saving, not of names
        checkpoints.save(tmp_path, f"step-{number}", write("x"), retention=Retention(keep_last=2))
    assert names(tmp_path) == ["latest", "step-11", "step-8"]


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    for number, loss in enumerate((0.5, 0.1, 0.4, math.nan, 0.3)):
        checkpoints.save(
            tmp_path, f"step-{number}", write("x"), retention=Retention(keep_last=1), metrics={"loss": loss}
        )
    assert names(tmp_path) == ["latest", "step-1", "step-4"]


def test_old_ones_go_by_age_but_for_the_newest_and_the_best(tmp_path: Path) -> None:
    rules = Retention(keep_last=10, max_age_days=1)
    now = 1_000_000.0
    for number, loss in enumerate((0.5, 0.1, 0.4)):
        checkpoints.save(tmp_path, f"step-{number}", write("x"), metrics={"loss": loss}, clock=lambda: now)
    checkpoints.save(tmp_path, "step-9", write("x"), retention=rules, clock=lambda: now + 86401)
    assert names(tmp_path) == ["latest", "step-1", "step-9"]


def test_one_that_is_in_use_stays_until_it_is_not(tmp_path: Path) -> None:
    first, rules = checkpoints.save(tmp_path, "one", write("1")), Retention(keep_last=1)
    with checkpoints.hold(first):
        checkpoints.save(tmp_path, "two", write("2"), retention=rules)
        assert names(tmp_path) == ["latest", "one", "two"]
    checkpoints.save(tmp_path, "three", write("3"), retention=rules)
    assert names(tmp_path) == ["latest", "three"]
    with pytest.raises(CheckpointError, match="one cannot be used: No such file or directory"), checkpoints.hold(first):
        pass


def flip_bit(path: Path) -> None:
    data = bytearray((path / "weights").read_bytes())
    data[0] ^= 1
    (path / "weights").write_bytes(data)


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return edit


#: Of the byte that `flip_bit` makes of "2".
WEIGHTS = {"sha256": hashlib.sha256(b"3").hexdigest(), "size": 1}
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flip_bit, "two: weights must have sha256"),
    "a cut file": (lambda path: os.truncate(path / "weights", 0), "and 1 bytes, got"),
    "a missing file": (lambda path: (path / "sub/states").unlink(), "two lacks sub/states"),
    "an added file": (lambda path: (path / "more").write_text("x"), "two has more, which is not in its manifest"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "two has no manifest"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 20), "two has a damaged manifest"),
    "another's manifest": (edit_manifest(lambda m: m.update(name="one")), "a manifest of another checkpoint or format"),
    "another format": (edit_manifest(lambda m: m.update(format=1)), "a manifest of another checkpoint or format"),
    "an edited manifest": (
        edit_manifest(lambda m: m.update(sequence=9)),
        "two has a manifest that was changed after it was written",
    ),
    "a digest in the manifest that fits a changed file": (
        lambda path: (
            flip_bit(path),
            edit_manifest(lambda m: m["files"].update(weights=describe(path / "weights")))(path),
        ),
        "two has a manifest that was changed after it was written",
    ),
    "a renamed file": (lambda path: (path / "weights").rename(path / "heights"), "two lacks weights"),
    "a metric that is no number": (edit_manifest(lambda m: m.update(metrics={"loss": "x"})), "a damaged manifest"),
    "a pipe": (lambda path: os.mkfifo(path / "more"), "holds files only, got the special file more"),
    "a link": (lambda path: (path / "more").symlink_to("weights"), "holds files only, got the link more"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_reason(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = DAMAGES[case]
    first = checkpoints.save(tmp_path, "one", write("1"))
    damage(checkpoints.save(tmp_path, "two", write("2")))
    with caplog.at_level(logging.WARNING):
        assert checkpoints.latest(tmp_path) == first
    assert reason in caplog.text


def test_a_damaged_checkpoint_does_not_keep_its_name_from_being_saved_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip_bit(checkpoints.save(tmp_path, "one", write("1")))
    saved = checkpoints.save(tmp_path, "one", write("2"))
    assert checkpoints.latest(tmp_path) == saved and (saved / "weights").read_text() == "2"
    assert "a damaged checkpoint is replaced: one: weights must have sha256" in caplog.text


def test_the_digests_are_no_signature(tmp_path: Path) -> None:
    """Stated, not wished away: who may write the directory can make a checkpoint that verifies (ADR 9)."""
    path = checkpoints.save(tmp_path, "one", write("1"))
    flip_bit(path)
    manifest = json.loads((path / "manifest.json").read_text())
    files = manifest["files"] | {"weights": describe(path / "weights")}
    fields = {key: value for key, value in manifest.items() if key not in ("sha256", "format")} | {"files": files}
    (path / "manifest.json").write_bytes(Manifest(**fields).to_json())
    assert checkpoints.latest(tmp_path) == path


def test_a_file_is_read_only_as_it_was_written(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, "one", write("1"))
    manifest = checkpoints.verify(path)
    assert checkpoints.read(path, "weights", manifest) == b"1"
    flip_bit(path)
    with pytest.raises(CheckpointError, match="one: weights must have sha256"):
        checkpoints.read(path, "weights", manifest)
    with pytest.raises(CheckpointError, match="one: absent cannot be read: No such file"):
        checkpoints.read(path, "absent", manifest)


def fails(_: Path) -> None:
    raise ValueError("disk full")


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a name with a slash": ("a/b", write("x"), "checkpoint name must match"),
    "a hidden name": (".tmp-x", write("x"), "checkpoint name must match"),
    "the pointer's name": ("latest", write("x"), "and not be latest, got 'latest'"),
    "a name that is taken": ("one", write("x"), "checkpoint one exists already; checkpoints are never overwritten"),
    "an empty checkpoint": ("two", lambda _: None, "checkpoint two is empty: its write function wrote no file"),
    "a manifest of its own": (
        "two",
        lambda folder: (folder / "manifest.json").write_text("{}") and None,
        "a checkpoint's file must not be called manifest.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    name, writer, message = REFUSED[case]
    checkpoints.save(tmp_path, "one", write("1"))
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(")):
        checkpoints.save(tmp_path, name, writer)
    assert names(tmp_path) == ["latest", "one"]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disk full"):
        checkpoints.save(tmp_path, "one", fails)
    assert names(tmp_path) == []


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is writing a checkpoint"):
            checkpoints.save(tmp_path, "one", write("1"))
    checkpoints.save(tmp_path, "one", write("1"))


def test_a_writer_waits_for_the_lock_of_one_that_was_lost(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        freed = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
        freed.start()
        checkpoints.save(tmp_path, "one", write("1"), patience=30)
        freed.join()
    assert names(tmp_path) == ["latest", "one"]


def test_a_killed_writer_never_leaves_a_checkpoint_that_loads_wrong(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "node")}
    seen, newest = 0, ""
    for attempt in range(10):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(attempt * 1000)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.06))  # the point at which it dies is the subject
            process.send_signal(signal.SIGKILL)
        found = checkpoints.latest(tmp_path)
        if found is not None:
            number = found.name.removeprefix("step-")
            for name in ("weights", "sub/states"):
                assert (found / name).read_text() == number * 100 * 200
            assert found.name >= newest  # what was whole stays
            newest, seen = found.name, seen + 1
    assert seen > 2
    checkpoints.save(tmp_path, "zz-last", write("x"), retention=Retention(keep_last=1))
    assert names(tmp_path) == ["latest", "zz-last"]  # and what the dead have left is gone


def test_atomic_write_replaces_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoints.atomic_write(path, lambda temporary: temporary.write_text("one") and None)
    with pytest.raises(ValueError, match="disk full"):
        checkpoints.atomic_write(path, fails)
    assert path.read_text() == "one"
    assert names(tmp_path) == ["file"]


def test_what_mxnet_saves_below_the_checkpoint_directory_is_whole_whenever_its_writer_dies(
    in_node: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = in_node("saving.py", str(tmp_path))
    assert result["wrong"] == []
    assert result["loaded"] > 5
    assert result["fresh"] == ["model-0000.params", "model-symbol.json", "net.params"]
    assert result["elsewhere"] == ["other.params"]
    assert "MXNetError" in result["unwritable"] or "FileNotFoundError" in result["unwritable"]
