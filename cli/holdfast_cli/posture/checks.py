"""Runs every check. One that cannot read what it needs is unknown, whatever the reason, and never passed."""

from typing import TYPE_CHECKING

from holdfast_cli.posture import endpoints, instances, keys, network, nodes, permissions, services, storage
from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import ROWS, Check, Finding, Report, Status

if TYPE_CHECKING:
    from holdfast_cli.aws import Cluster

_MODULES = (network, endpoints, nodes, instances, keys, storage, permissions, services)
#: In the order of the threat table.
CHECKS: tuple[Check, ...] = tuple(
    sorted((check for module in _MODULES for check in module.CHECKS), key=lambda check: list(ROWS).index(check.row))
)


def verify(cluster: "Cluster") -> Report:
    """Return what every check finds in a deployed cluster; nothing is changed."""
    inventory = Inventory(cluster)
    findings = tuple(_finding(check, inventory) for check in CHECKS)
    return Report(cluster=inventory.name, region=inventory.region, findings=findings)


def _finding(check: Check, inventory: Inventory) -> Finding:
    try:
        outcome = check.look(inventory)
    except Unreadable as error:
        return Finding(check=check, status=Status.UNKNOWN, seen="", problems=(str(error),))
    except (KeyError, TypeError, ValueError) as error:
        # An answer without a field that the API promises: nothing is known of what it stands for.
        problem = f"AWS's answer cannot be read ({type(error).__name__}: {error})"
        return Finding(check=check, status=Status.UNKNOWN, seen="", problems=(problem,))
    status = Status.FAIL if outcome.problems else Status.PASS
    return Finding(check=check, status=status, seen=outcome.seen, problems=outcome.problems)
