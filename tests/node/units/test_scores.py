"""The sandboxes are as tight as the threat table needs them, on every kind of node."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import skip
from tests.node.units import scores
from tests.node.units.unit_files import image


@pytest.fixture(scope="module")
def found() -> Iterator[list[scores.Score]]:
    if os.geteuid():
        skip("only root may give files to the node's users")
    yield scores.scores()


def test_every_unit_is_scored_on_every_kind_of_node(found: list[scores.Score]) -> None:
    assert {entry.unit for entry in found} == set(scores.LIMITS)
    trainers = [entry.node for entry in found if entry.unit == "holdfast-trainer.service"]
    assert trainers == list(scores.NODES)


def test_no_unit_is_more_exposed_than_it_may_be(found: list[scores.Score]) -> None:
    assert [f"{entry.unit} on {entry.node}: {entry.exposure}" for entry in found if entry.exposure > entry.limit] == []


def test_systemd_itself_refuses_a_unit_with_a_user_and_nothing_else(tmp_path: Path) -> None:
    unit = image(tmp_path) / "etc/systemd/system/holdfast-trainer.service"
    assert scores.analyze(tmp_path, unit.name, 1.5)[0]
    unit.write_text("[Service]\nUser=holdfast-trainer\nExecStart=/usr/bin/rm\n")
    (unit.parent / "holdfast-trainer.service.d/10-role.conf").unlink()
    within, exposure = scores.analyze(tmp_path, unit.name, 1.5)
    assert not within and exposure > 9


def test_the_gpu_drop_in_opens_devices_and_nothing_that_a_worker_has_closed(found: list[scores.Score]) -> None:
    worker, gpu = (
        {name.rpartition(" ")[0] for name in entry.open}
        for node in ("worker", "worker with a GPU")
        for entry in found
        if entry.node == node
    )
    assert gpu - worker == {"PrivateDevices=", "ProcSubset="}


def test_the_page_shows_these_scores(found: list[scores.Score]) -> None:
    text, version = scores.PAGE.read_text(), scores.systemd_version()
    if f"of systemd {version} " in text:
        assert text == scores.page(found, version), "run: python -m tests.node.units.scores"
    else:  # another systemd weighs otherwise; what is scored is the same
        assert re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE) == [(e.unit, e.node) for e in found]
