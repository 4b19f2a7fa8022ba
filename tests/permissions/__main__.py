"""`make permissions`: live a whole life, compare what it asked for with what is granted, write the evidence.

The life is that of the end-to-end tests: deploy, enrol, train, checkpoint, sign, fail, go on after faults, revoke,
serve, tear down, with hosts as processes and with hosts that boot. Ten minutes; needs root.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kit.support import ROOT, synthesize
from tests.permissions import granted, report

from holdfast_local.emulator.names import RECORD_VARIABLE

LIFE = (
    "tests/e2e/test_jobs.py",
    "tests/e2e/test_failure.py",
    "tests/boot/test_machines.py",
    "tests/kit/test_deployed.py",
)
SERVING = {"predictor": {"job": "digits-20260102-030405-ab12"}}


def main() -> int:
    """Return 0 if the life succeeded and every permission is used or excused."""
    with tempfile.TemporaryDirectory(prefix="holdfast-permissions-") as directory:
        record = Path(directory) / "calls.jsonl"
        environment = os.environ | {RECORD_VARIABLE: str(record)}
        life = subprocess.run([sys.executable, "-m", "pytest", "-q", *LIFE], cwd=ROOT, env=environment, check=False)
        if life.returncode:
            return life.returncode
        grants = granted.granted(synthesize(Path(directory) / "assembly", SERVING, "local"))
        calls = list(granted.recorded(record, {grant.role for grant in grants}))
    text = report.page(granted.uses(grants, calls), granted.refused(calls))
    report.PAGE.write_text(text)
    print(text, f"wrote {report.PAGE}", sep="\n")
    left = report.unused(granted.uses(grants, calls))
    for grant in left:
        print(
            f"error: {grant.role} may {grant.action} ({grant.statement}) and never did; take it away", file=sys.stderr
        )
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
