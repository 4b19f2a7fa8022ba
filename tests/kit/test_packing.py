"""Packing code: deterministic, complete, and clear when it cannot be done."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from tests.kit.support import ROOT

from holdfast.enrolment import SERVICES, SOURCES
from holdfast.errors import BundleError
from holdfast.packing import file_digest, pack_function, pack_wheels, read_tree, write_zip

CONTENTS = {"b/two.py": b"2", "a.py": b"1"}


def test_zip_depends_on_its_contents_alone(tmp_path: Path) -> None:
    first = write_zip(tmp_path / "one.zip", CONTENTS)
    second = write_zip(tmp_path / "elsewhere/two.zip", dict(reversed(CONTENTS.items())))
    assert first == second == hashlib.sha256((tmp_path / "one.zip").read_bytes()).hexdigest()


def test_zip_changes_with_its_contents(tmp_path: Path) -> None:
    assert write_zip(tmp_path / "a.zip", CONTENTS) != write_zip(tmp_path / "b.zip", {**CONTENTS, "a.py": b"3"})


def test_zip_holds_sorted_files_that_everyone_can_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", CONTENTS)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert [(i.filename, i.external_attr >> 16, i.date_time[0]) for i in archive.infolist()] == [
            ("a.py", 0o100644, 1980),
            ("b/two.py", 0o100644, 1980),
        ]


def test_compiled_files_are_left_out(tmp_path: Path) -> None:
    cached = tmp_path / "package/__pycache__/module.py"
    cached.parent.mkdir(parents=True)
    cached.write_text("x")
    (tmp_path / "package/module.py").write_text("y")
    assert read_tree(tmp_path, "*.py") == {"package/module.py": b"y"}


def test_function_is_packed_with_its_locked_dependencies_and_without_network_the_second_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, digest = pack_function(SOURCES, ROOT / ".build", services=SERVICES)
    assert {"handler.py", "boto3", "cryptography"} <= {path.name for path in directory.iterdir()}
    assert not list(directory.rglob("*.pyc"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://localhost:1/")
    assert pack_function(SOURCES, ROOT / ".build", services=SERVICES) == (directory, digest)


def test_packed_sdk_describes_the_functions_services_and_no_others() -> None:
    directory, _ = pack_function(SOURCES, ROOT / ".build", services=SERVICES)
    data = directory / "botocore/data"
    assert {path.name for path in data.iterdir() if path.is_dir()} == set(SERVICES)
    assert {"endpoints.json", "partitions.json"} <= {path.name for path in data.iterdir()}


def test_packed_function_is_small_enough_to_start_quickly() -> None:
    directory, _ = pack_function(SOURCES, ROOT / ".build", services=SERVICES)
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 40 * 1024 * 1024


def test_packed_extension_modules_are_for_the_functions_runtime() -> None:
    directory, _ = pack_function(SOURCES, ROOT / ".build", services=SERVICES)
    modules = [path.name for path in directory.rglob("*.so") if "rust" in path.name or "cffi" in path.name]
    assert modules
    assert [name for name in modules if "abi3" not in name and "cpython-311-x86_64" not in name] == []


def fake_function(tmp_path: Path, requirements: str, handler: str = "def handler(event, context): ...\n") -> Path:
    sources = tmp_path / "sample"
    sources.mkdir()
    (sources / "handler.py").write_text(handler)
    (sources / "requirements.txt").write_text(requirements)
    return sources


def test_digest_follows_the_sources(tmp_path: Path) -> None:
    sources = fake_function(tmp_path, "")
    _, before = pack_function(sources, tmp_path / "cache")
    (sources / "handler.py").write_text("changed = True\n")
    directory, after = pack_function(sources, tmp_path / "cache")
    assert before != after
    assert (directory / "handler.py").read_text() == "changed = True\n"


def test_dependency_without_a_hash_is_refused(tmp_path: Path) -> None:
    sources = fake_function(tmp_path, "cffi==2.1.1\n")
    with pytest.raises(BundleError) as refusal:
        pack_function(sources, tmp_path / "cache")
    assert f"the dependencies in {sources / 'requirements.txt'} could not be installed: " in str(refusal.value)
    assert "hash" in str(refusal.value).lower()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == []


def test_unreachable_index_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://localhost:1/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    sources = fake_function(tmp_path, f"cffi==2.1.1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BundleError, match="check that this machine reaches a Python package index"):
        pack_function(sources, tmp_path / "cache")


def test_folder_without_a_handler_is_refused(tmp_path: Path) -> None:
    sources = fake_function(tmp_path, "")
    (sources / "handler.py").unlink()
    with pytest.raises(BundleError, match=r"must hold handler\.py and requirements\.txt, got \[\]"):
        pack_function(sources, tmp_path / "cache")


def test_enrolment_sources_import_only_what_is_packed(tmp_path: Path) -> None:
    copied = shutil.copytree(SOURCES, tmp_path / "enrolment", ignore=shutil.ignore_patterns("__pycache__"))
    assert "holdfast" not in {
        line.split()[1].split(".")[0]
        for path in copied.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }


LOCK = ROOT / "node/requirements.txt"


def test_wheels_are_those_of_the_lock_and_need_no_network_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    target, digest = pack_wheels(LOCK, ROOT / ".build")
    assert file_digest(target) == digest
    locked = re.findall(r"^([a-z0-9-]+)==(\S+) ", LOCK.read_text(), re.M)
    with zipfile.ZipFile(target) as archive:
        wheels = {(name.split("-")[0].lower().replace("_", "-"), name.split("-")[1]) for name in archive.namelist()}
        contents = [hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()]
    assert wheels == set(locked)
    assert set(contents) <= set(re.findall(r"--hash=sha256:([0-9a-f]{64})", LOCK.read_text()))
    monkeypatch.setenv("PIP_INDEX_URL", "https://localhost:1/")
    assert pack_wheels(LOCK, ROOT / ".build") == (target, digest)


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"six==1.17.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BundleError, match="could not be installed"):
        pack_wheels(lock, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
