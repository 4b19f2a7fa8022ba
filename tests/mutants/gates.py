"""The gates: what judges a template before it is deployed.

Each takes a folder of templates and returns what it finds in each, by the file's name without `.json`. Our own
assertions look at a deployment's templates together, the others at each by itself. Gates that the project does not
have yet (checkov, CloudFormation Guard, an IAM prover) would be more of these.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kit.posture.model import Template, Templates
from tests.kit.posture.rules import Finding, judge
from tests.kit.support import ROOT
from tests.mutants.edits import Mutant
from tests.mutants.mutants import mutated

Gate = Callable[[Path], dict[str, set[str]]]
#: A second for each template, and as much again on a busy machine.
_LIMIT_SECONDS = 1800


def assertions(mutant: Mutant, templates: Mapping[str, Template]) -> list[Finding]:
    """Return what our own assertions find in a mutant's deployment."""
    return judge(Templates({**templates, mutant.part: mutated(mutant, templates)}))


def lint(folder: Path) -> dict[str, set[str]]:
    """Return cfn-lint's findings."""
    paths = sorted(map(str, folder.glob("*.json")))
    linter = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [linter, "--regions", "us-east-1", "--format", "json", "--", *paths],
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
    )
    # A bit each for errors, warnings and information; 1 is the linter's own failure.
    if result.returncode & 1 or result.stderr:
        raise RuntimeError(f"cfn-lint must judge the templates, got status {result.returncode}: {result.stderr}")
    findings: dict[str, set[str]] = defaultdict(set)
    for match in json.loads(result.stdout):
        findings[Path(match["Filename"]).stem].add(f"{match['Rule']['Id']} {match['Message']}")
    return findings


def nag(folder: Path) -> dict[str, set[str]]:
    """Return cdk-nag's findings (AwsSolutions), with those that the deployment acknowledges."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.mutants.nag", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
    )
    if result.returncode:
        raise RuntimeError(f"cdk-nag must judge the templates, got status {result.returncode}: {result.stderr[-2000:]}")
    found = json.loads(result.stdout.splitlines()[-1])
    return defaultdict(set, {name: set(findings) for name, findings in found.items()})


TOOLS: dict[str, Gate] = {"cfn-lint": lint, "cdk-nag": nag}
