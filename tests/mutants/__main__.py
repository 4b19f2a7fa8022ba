"""`make mutants`: change one security property of the templates at a time, and see which gates notice.

Prints the matrix and writes docs/evidence/mutants.md. The exit status is 0 if every mutant is caught and the unchanged
templates are clean.
"""

import sys

from rich.console import Console
from tests.mutants import report, trial


def main() -> int:
    """Try every mutant on every gate."""
    outcome = trial.run()
    report.show(outcome, Console(width=200))
    report.write_page(outcome)
    return 0 if outcome.as_it_should else 1


if __name__ == "__main__":
    sys.exit(main())
