"""The evidence as a page: each permission with how often it was needed, or why this machine could not need it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.kit.support import ROOT
from tests.permissions.granted import Call, Grant

PAGE = ROOT / "docs/evidence/permissions.md"

#: What services of AWS do in a role's name and the embedded AWS does not: by role and statement.
UNSEEN = {
    ("NetworkFlowLog", "OwnLog"): "no flow logs are delivered here",
    ("ClusterJobs", "EncryptedHistory"): "histories of executions are not encrypted here",
    ("ClusterJobs", "EncryptedLogDelivery"): "logs of executions are not encrypted here",
    ("ClusterJobs", "LogDelivery"): "logs of executions are not delivered here",
    ("ClusterJobsAbort", "StartLowering"): "events are delivered here without their rule's role",
    ("FoundationEnrolment", "OwnEnvironment"): "a function's environment is not encrypted here",
    ("FoundationEnrolment", "OwnLog"): "functions' logs are written by the embedded AWS itself",
}


def unused(uses: Mapping[Grant, Sequence[Call]]) -> list[Grant]:
    """Return the permissions that were never needed, without those that cannot be here."""
    return [grant for grant, calls in uses.items() if not calls and (grant.role, grant.statement) not in UNSEEN]


def page(uses: Mapping[Grant, Sequence[Call]], refused: Counter[tuple[str, str]]) -> str:
    """Return the page."""
    needed = sum(bool(calls) for calls in uses.values())
    lines = [
        "# Which permissions are used",
        "",
        "Written by `make permissions`: the end-to-end tests lived a whole life of the cluster with IAM enforced, and",
        "the embedded AWS noted which statement was the first to allow each call. A permission that another statement",
        "gives too, or that nothing asks for, has no call. The last column names the condition keys of the requests.",
        "",
        f"**{needed} of {len(uses)} permissions were needed, {len(unused(uses))} were not;** what AWS's own",
        "services do in a role's name and the embedded AWS does not is marked with the reason.",
        "",
        "| role | statement | action | calls | resources | condition keys |",
        "|---|---|---|---|---|---|",
    ]
    for grant, calls in uses.items():
        resources = len({call.resource for call in calls})
        keys = ", ".join(
            sorted({f"`{key}`" for call in calls for key in call.keys if not key.startswith("aws:tagkeys")})
        )
        reason = UNSEEN.get((grant.role, grant.statement), "**never**")
        counted = f"{len(calls)} | {resources} | {keys}" if calls else f"{reason} | |"
        lines.append(f"| {grant.role} | {grant.statement} | `{grant.action}` | {counted} |")
    lines += [
        "",
        "## What was refused",
        "",
        "None of it kept a job from success: most of it is what tests tried.",
        "",
        "| role | action | calls |",
        "|---|---|---|",
        *(f"| {role} | `{action}` | {count} |" for (role, action), count in sorted(refused.items())),
    ]
    return "\n".join(lines) + "\n"
