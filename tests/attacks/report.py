"""Running the attack table, and showing what came of it: a table, JSON, and the page docs/threats.md."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tests.attacks.arenas import Arena
from tests.attacks.model import Attack, Outcome, Verdict
from tests.attacks.table import ATTACKS, THREATS

PAGE = Path(__file__).resolve().parents[2] / "docs/threats.md"
_HELD = (Verdict.REFUSED, Verdict.UNHARMED)


@dataclass(frozen=True)
class Result:
    """What came of one attack on both sides; a side is None if it could not be tried, with the reason in `error`."""

    attack: Attack
    vanilla: Outcome | None
    holdfast: Outcome | None
    error: str
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether vanilla showed what the table says, and Holdfast held."""
        if self.vanilla is None or self.holdfast is None:
            return False
        return self.vanilla.verdict is self.attack.vanilla_expected and self.holdfast.verdict in _HELD


def run(arena: Arena, attack: Attack) -> Result:
    """Try one attack against both."""
    began = time.monotonic()
    outcomes = dict(zip(("vanilla", "Holdfast"), attack.on_both(arena), strict=True))
    # One attack that cannot be tried must not hide the others.
    errors = [f"{side}: {type(e).__name__}: {e}" for side, e in outcomes.items() if isinstance(e, Exception)]
    vanilla, holdfast = (None if isinstance(outcome, Exception) else outcome for outcome in outcomes.values())
    return Result(attack, vanilla, holdfast, "; ".join(errors), time.monotonic() - began)


def run_all(*, small: bool, wanted: Iterable[str] = (), stream: Console | None = None) -> list[Result]:
    """Try the attacks (all, or those of these ids), and then let the Holdfast job that suffered them finish."""
    chosen = [attack for attack in ATTACKS if not wanted or attack.id in set(wanted)]
    results = []
    with Arena(small=small) as arena:
        for number, attack in enumerate(chosen, 1):
            results.append(run(arena, attack))
            if stream is not None:
                mark = "ok" if results[-1].as_expected else "NOT AS EXPECTED"
                stream.print(
                    f"[{number}/{len(chosen)}] {attack.id}: {mark} ({results[-1].seconds:.0f} s)", markup=False
                )
        if "holdfast" in arena.__dict__:
            steps = arena.holdfast.finish()
            if stream is not None:
                stream.print(f"the attacked job ended with status 0 and the right weights after {steps} steps")
    return results


def show(results: list[Result], console: Console) -> None:
    """Print the table."""
    table = Table(title="Attacks", show_lines=True)
    for name, ratio in (("attack", 2), ("vanilla", 3), ("Holdfast", 4)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for result in results:
        cells = [_cell(outcome, result.error) for outcome in (result.vanilla, result.holdfast)]
        table.add_row(f"{result.attack.threat} {escape(result.attack.title)}", *cells)
    console.print(table)
    bad = [result.attack.id for result in results if not result.as_expected]
    console.print(f"{len(results)} attacks, {len(bad)} not as expected{': ' + ', '.join(bad) if bad else ''}")


def as_json(results: list[Result]) -> str:
    """Return the table as JSON."""
    rows = [
        {
            "id": result.attack.id,
            "threat": result.attack.threat,
            "attack": result.attack.title,
            "vanilla": _outcome(result.vanilla),
            "holdfast": _outcome(result.holdfast),
            "as_expected": result.as_expected,
            "error": result.error,
        }
        for result in results
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def page(results: Iterable[Result] = ()) -> str:
    """Return docs/threats.md: what is attacked, how, and what came of it in `results`.

    A row that is not among them shows what the table expects.
    """
    came = {result.attack.id: result for result in results}
    lines = [
        "# Threats, attacked",
        "",
        "Written by `make attacks` from the attack table (`tests/attacks/table.py`). Each row was run against vanilla",
        "MXNet 1.9.1 and against Holdfast, in network namespaces of one machine, and the verdicts are what came of it;",
        "a test holds them to what the table expects. `make attacks` prints the evidence of each row.",
        "",
    ]
    for threat, words in THREATS.items():
        lines += [
            f"## {threat}: {words}",
            "",
            "| attack | on vanilla MXNet | vanilla | on Holdfast | Holdfast | what stands against it |",
            "|---|---|---|---|---|---|",
        ]
        for attack in (attack for attack in ATTACKS if attack.threat == threat):
            vanilla, holdfast = _verdicts(attack, came.get(attack.id))
            cells = [attack.title, attack.against_vanilla, f"**{vanilla}**", attack.against_holdfast]
            cells += [f"**{holdfast}**", attack.defence]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines) + _LIMITS


_LIMITS = """\
## What these attacks do not show

- They run on one machine: the switch and its security groups are the local hosts' (nftables), not AWS's. The keys of
  the CA, of jobs and of models are in memory instead of KMS, and the jobs bucket is a dictionary. The agent's part in a
  revocation is played by the lab, with the agent's own code; the end-to-end tests have whole agents.
- A node that was admitted can end its job: what a server refuses ends it, with the sender's name as the job's cause.
- What an admitted worker can have a server hold in memory has a limit by the model's size; worker 0 sends the model.
  A worker that reads no answers stops its server, which heartbeats notice; they do not say who it was (ADR 8).
- Vanilla MXNet signs no command line, code or package: there its side of B5 shows only that what was changed runs.
- Gradients are not judged. A worker that was admitted can train towards what it likes; so can the script itself.
- A node that is taken over is still that node until it is revoked: it has its certificate and its address.
- It also has its role's AWS credentials, until it is terminated: with them it can register and report for other nodes
  of its role, which can end the job and opens no connection (TLS still asks for each name), and a worker can sign
  models.
- What the trainer can write is shown in a local host's file system tree; systemd's sandbox on EC2 is not in this table.
- B2 is tried further on the deployed templates: `make boundary` scans every port from every role and from outside
  ([ports](evidence/ports.md)), and shows that training needs each security-group rule ([rules](evidence/rules.md)).
"""


def _verdicts(attack: Attack, result: Result | None) -> tuple[str, str]:
    if result is None:
        return str(attack.vanilla_expected), str(attack.holdfast_expected)
    vanilla, holdfast = (
        "not tried" if outcome is None else str(outcome.verdict) for outcome in (result.vanilla, result.holdfast)
    )
    return vanilla, holdfast


def _cell(outcome: Outcome | None, error: str) -> str:
    if outcome is None:
        return f"[bold red]not tried[/]\n{escape(error[:300])}"
    colour = "green" if outcome.verdict in _HELD else "red"
    return f"[bold {colour}]{outcome.verdict}[/]\n{escape(outcome.evidence)}"


def _outcome(outcome: Outcome | None) -> dict[str, str] | None:
    return None if outcome is None else {"verdict": str(outcome.verdict), "evidence": outcome.evidence}


def write_page(results: Iterable[Result]) -> None:
    """Write docs/threats.md."""
    PAGE.write_text(page(results))


def fail(text: str) -> int:
    """Say why nothing was run, and return the exit status."""
    print(text, file=sys.stderr)
    return 2
