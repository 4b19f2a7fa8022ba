"""`make attacks`: run the attack table, print it, and (of a whole run) write docs/threats.md.

    .venv/bin/python -m tests.attacks [--small] [--output table|json] [--only ID…]

The exit status is 0 if vanilla showed what the table says and Holdfast held in every row, 1 if not, 2 if this machine
cannot hold the lab.
"""

import argparse
import sys

from rich.console import Console
from tests.attacks import report
from tests.attacks.table import ATTACKS

from holdfast_local.lab import LabError, require


def main() -> int:
    """Run the attacks."""
    parser = argparse.ArgumentParser(prog="attacks", description="Attack vanilla MXNet and Holdfast, and compare.")
    parser.add_argument("--small", action="store_true", help="the size inside `make test`")
    parser.add_argument("--output", choices=("table", "json"), default="table")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", choices=[attack.id for attack in ATTACKS])
    arguments = parser.parse_args()
    try:
        require()
    except LabError as error:
        return report.fail(str(error))
    results = report.run_all(small=arguments.small, wanted=arguments.only, stream=Console(stderr=True))
    if arguments.output == "json":
        print(report.as_json(results))
    else:
        report.show(results, Console())
    if not arguments.only:
        report.write_page(results)
    return 0 if all(result.as_expected for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
