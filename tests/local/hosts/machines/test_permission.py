"""Whether a role may mount: named cases of IAM's evaluation, each allowed one beside a denied one."""

from typing import Any

import pytest

from holdfast_local.hosts.machines.permission import allowed

ARN, ROLE = "arn:aws:elasticfilesystem:eu-west-1:1:file-system/fs-1", "arn:aws:iam::1:role/node"
POINT = "arn:aws:elasticfilesystem:eu-west-1:1:access-point/fsap-1"
MOUNT = "elasticfilesystem:ClientMount"


def policy(**statement: Any) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": MOUNT, "Resource": ARN} | statement}


def through(point: str) -> dict[str, Any]:
    return {"Condition": {"StringEquals": {"elasticfilesystem:AccessPointArn": point}}}


NO_TLS = policy(Effect="Deny", Principal={"AWS": "*"}, Action="*", Condition={"Bool": {"aws:SecureTransport": "false"}})
NO_POINT = policy(
    Effect="Deny", Principal={"AWS": "*"}, Condition={"Null": {"elasticfilesystem:AccessPointArn": "true"}}
)
FROM_ROLE = policy(Principal={"AWS": ROLE})
CASES: dict[str, tuple[bool, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nothing": (False, [], []),
    "its own policy": (True, [policy()], []),
    "another action": (False, [policy(Action="elasticfilesystem:ClientWrite")], []),
    "another file system": (False, [policy(Resource=f"{ARN}0")], []),
    "any action of the service": (True, [policy(Action="elasticfilesystem:*")], []),
    "through this access point": (True, [policy(**through(POINT))], []),
    "through another access point": (False, [policy(**through(f"{POINT}0"))], []),
    "a condition that is not understood": (False, [policy(Condition={"IpAddress": {"aws:SourceIp": "::/0"}})], []),
    "all but one action": (False, [{"Statement": [{"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"}]}], []),
    "the kit's file system policy": (True, [policy()], [NO_TLS, NO_POINT]),
    "the file system's policy alone": (True, [], [FROM_ROLE]),
    "the file system's policy for another": (False, [], [policy(Principal={"AWS": f"{ROLE}0"})]),
    "a deny in its own": (False, [policy(), policy(Effect="Deny")], []),
    "a deny of the file system": (False, [policy()], [policy(Effect="Deny", Principal="*")]),
    "a deny that is not understood": (
        False,
        [policy()],
        [policy(Effect="Deny", Principal="*", Condition={"DateLessThan": {"aws:CurrentTime": "2000-01-01"}})],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mount_is_allowed_by_the_policies_alone(case: str) -> None:
    expected, role, resource = CASES[case]
    context = {"aws:SecureTransport": "true", "elasticfilesystem:AccessPointArn": POINT}
    got = allowed(role=role, resource=resource, principal=ROLE, action=MOUNT, arn=ARN, context=context)
    assert got is expected


def test_a_mount_past_the_access_point_is_denied() -> None:
    context = {"aws:SecureTransport": "true"}
    given = {"role": [policy()], "principal": ROLE, "action": MOUNT, "arn": ARN, "context": context}
    assert allowed(resource=[], **given)
    assert not allowed(resource=[NO_POINT], **given)
