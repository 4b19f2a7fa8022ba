"""Tries every mutant on every gate."""

import json
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.kit.posture.model import Template, Templates
from tests.kit.posture.rules import judge
from tests.mutants import gates
from tests.mutants.deployments import DEPLOYMENTS, templates_of
from tests.mutants.edits import Mutant
from tests.mutants.mutants import MUTANTS, mutated

OURS = "our assertions"
GATES = (OURS, *gates.TOOLS)
_RULE = re.compile(r"[^ \[]+")

Deployments = Mapping[str, Mapping[str, Template]]


@dataclass(frozen=True)
class Result:
    """A mutant, and by gate the rules that have a finding in it which its original has not."""

    mutant: Mutant
    rules: Mapping[str, list[str]]

    @property
    def caught(self) -> bool:
        """Whether any gate has noticed."""
        return any(self.rules.values())

    def only_by(self, gate: str) -> bool:
        """Whether this gate has noticed, and no other."""
        return [name for name, rules in self.rules.items() if rules] == [gate]


@dataclass(frozen=True)
class Outcome:
    """What came of a whole run: the results, and what was found in templates that nobody has changed."""

    results: list[Result]
    false_alarms: list[str]

    @property
    def missed(self) -> list[str]:
        """The mutants that no gate has noticed."""
        return [result.mutant.name for result in self.results if not result.caught]

    @property
    def as_it_should(self) -> bool:
        """Whether every mutant was caught, and nothing else."""
        return bool(self.results) and not self.missed and not self.false_alarms


def run() -> Outcome:
    """Synthesize the deployments, change them, and have the gates judge all; a few minutes.

    A finding of cdk-nag in an unchanged deployment that is not acknowledged ends the synthesis.
    """
    with tempfile.TemporaryDirectory(prefix="holdfast-mutants-") as directory:
        deployments = {name: templates_of(name, Path(directory) / name) for name in DEPLOYMENTS}
        folder = Path(directory) / "judged"
        folder.mkdir()
        _write(folder, deployments)
        with ThreadPoolExecutor() as pool:
            running = {name: pool.submit(gate, folder) for name, gate in gates.TOOLS.items()}
            found = {name: future.result() for name, future in running.items()}
    alarms = [str(finding) for templates in deployments.values() for finding in judge(Templates(templates))]
    originals = [_original(name, part) for name, parts in deployments.items() for part in parts]
    alarms += [f"cfn-lint: {name}: {text}" for name in originals for text in found["cfn-lint"].get(name, ())]
    return Outcome([_result(mutant, deployments, found) for mutant in MUTANTS], alarms)


def _original(deployment: str, part: str) -> str:
    return f"original-{deployment}-{part}"


def _write(folder: Path, deployments: Deployments) -> None:
    """Write every template and every mutant of one, each in a file of its own."""
    files = {_original(name, part): held for name, parts in deployments.items() for part, held in parts.items()}
    files |= {mutant.name: mutated(mutant, deployments[mutant.of]) for mutant in MUTANTS}
    for name, template in files.items():
        (folder / f"{name}.json").write_text(json.dumps(template))


def _result(mutant: Mutant, deployments: Deployments, found: Mapping[str, Mapping[str, set[str]]]) -> Result:
    rules = {OURS: {finding.rule for finding in gates.assertions(mutant, deployments[mutant.of])}}
    for tool, findings in found.items():
        before = findings.get(_original(mutant.of, mutant.part), set())
        rules[tool] = {rule_id(text) for text in findings.get(mutant.name, set()) - before}
    return Result(mutant, {gate: sorted(names) for gate, names in rules.items()})


def rule_id(finding: str) -> str:
    """Return the rule that a tool's finding names first, without the details of that one finding."""
    return _RULE.match(finding)[0]  # type: ignore[index]
