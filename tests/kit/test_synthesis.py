"""Synthesis as a whole: the same bytes every time, no findings, no stale excuse."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kit.support import PARTS, ROOT, Deployment

SETTINGS = ("local", "dev", "prod")

#: Synthesizes, and prints each acknowledgement with the path of the construct that it was made at.
RECORD_ACKNOWLEDGEMENTS = """
import json
import holdfast.findings

made = []
real = holdfast.findings.Validations

class Recorder:
    def __init__(self, construct):
        self.construct = construct
    @classmethod
    def of(cls, construct):
        return cls(construct)
    def acknowledge(self, acknowledgement):
        made.append([self.construct.node.path, acknowledgement.id.split("::", 1)[1]])
        real.of(self.construct).acknowledge(acknowledgement)

holdfast.findings.Validations = Recorder
import app
app.main()
print(json.dumps(made))
"""


def run_app(script: str, settings: str, output: Path) -> subprocess.CompletedProcess[str]:
    context = json.loads((ROOT / "cdk.json").read_text())["context"] | {"settings": settings}
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": ".:constructs:node",
        "CDK_OUTDIR": str(output),
        "CDK_CONTEXT_JSON": json.dumps(context),
    }
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def deployed_files(deployment: Deployment) -> dict[str, bytes]:
    """Everything that a deployment reads; the metadata and the tree are for diagnosis and hold temporary paths."""
    return {
        path.name: path.read_bytes()
        for pattern in ("*.template.json", "*.assets.json", "asset.*.zip")
        for path in deployment.directory.glob(pattern)
    }


def test_two_syntheses_write_the_same_bytes(synthesized: Callable[[str], Deployment]) -> None:
    first, second = deployed_files(synthesized("local")), deployed_files(synthesized("local-again"))
    assert len(first) == 2 * len(PARTS) + 2, "templates, manifests, and the zips of the bundle and its wheels"
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()


@pytest.mark.parametrize("settings", SETTINGS)
def test_nothing_is_looked_up(synthesized: Callable[[str], Deployment], settings: str) -> None:
    manifest = json.loads((synthesized(settings).directory / "manifest.json").read_text())
    assert not manifest.get("missing")


@pytest.mark.parametrize("settings", SETTINGS)
def test_policy_pack_has_no_finding_left(synthesized: Callable[[str], Deployment], settings: str) -> None:
    report = json.loads((synthesized(settings).directory / "validation-report.json").read_text())
    packs = {r["pluginName"] if "pluginName" in r else r["summary"]["pluginName"] for r in report["pluginReports"]}
    assert "AwsSolutions" in str(packs)
    assert [v["ruleName"] for r in report["pluginReports"] for v in r["violations"]] == []


@pytest.mark.parametrize("settings", SETTINGS)
def test_templates_pass_cfn_lint(synthesized: Callable[[str], Deployment], settings: str) -> None:
    templates = sorted(map(str, synthesized(settings).directory.glob("*.template.json")))
    assert len(templates) == len(PARTS)
    linter = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [linter, "--regions", "us-east-1", "--", *templates], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_acknowledgement_excuses_a_finding_that_there_is(tmp_path: Path) -> None:
    result = run_app(RECORD_ACKNOWLEDGEMENTS, "dev", tmp_path)
    assert result.returncode == 0, result.stderr
    made = [tuple(made) for made in json.loads(result.stdout.splitlines()[-1])]
    report = json.loads((tmp_path / "validation-report.json").read_text())
    excused = {
        (finding["acknowledgedAt"], finding["ruleName"])
        for pack in report["pluginReports"]
        for finding in pack["suppressedViolations"]
    }
    assert set(made) == excused
    assert len(set(made)) == len(made) < 40
