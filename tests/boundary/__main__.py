"""`make boundary`: deploy, scan every port, take each rule away, and write docs/evidence/. Some minutes; needs root."""

import sys
import tempfile
from pathlib import Path

from tests.boundary import ports, report, rules
from tests.boundary.cluster import Cluster
from tests.e2e.support import run_holdfast


def main() -> int:
    """Run both trials whole; return 0 only if everything is as it should be."""
    with tempfile.TemporaryDirectory(prefix="holdfast-boundary-") as directory:
        state = Path(directory) / "state"
        up = run_holdfast(state, "local", "up", "--hosts", "process")
        if up.status:
            print(up.errors, file=sys.stderr)
            return 1
        try:
            cluster = Cluster(state)
            seen = list(ports.scan(cluster))
            report.show(report.PORTS_HEAD, report.ports(seen))
            report.write_ports(report.ports(seen))
            trials = []
            for trial in rules.try_without(cluster, cluster.rules()):
                trials.append(trial)
                print(*report.rules([trial])[0], sep="; ", flush=True)
        finally:
            run_holdfast(state, "local", "down")
    report.show(report.RULES_HEAD, report.rules(trials))
    report.write_rules(report.rules(trials))
    return 0 if all(item.as_expected for item in (*seen, *trials)) else 1


if __name__ == "__main__":
    sys.exit(main())
