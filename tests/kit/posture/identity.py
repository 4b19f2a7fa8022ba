"""Rules of who may do what: roles and their policies."""

import re
from collections.abc import Iterator
from typing import Any

from tests.kit.posture.model import (
    ACCOUNT,
    AGENT_CHANNELS,
    DATA_KEY,
    Problem,
    Resource,
    Templates,
    actions,
    allowed,
    expect,
    label,
    statements,
    targets,
    wrong,
)
from tests.kit.support import as_list

POLICY, ROLE = "AWS::IAM::ManagedPolicy", "AWS::IAM::Role"
DIGEST_ONLY = {"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256", "kms:MessageType": "DIGEST"}}
#: What the AWS documentation gives no resource to scope to (Service Authorization Reference).
UNSCOPABLE = {
    *AGENT_CHANNELS,
    *("autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances"),
    *(f"logs:{verb}LogDelivery" for verb in ("Create", "Delete", "Get", "Update")),
    *("logs:ListLogDeliveries", "logs:DescribeLogGroups"),
    *("logs:DescribeResourcePolicies", "logs:PutResourcePolicy"),
}
#: Every action that a role of the cluster is allowed; another one is looked at before it is added here.
ACTIONS = UNSCOPABLE | {
    *("acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate", "acm-pca:IssueCertificate"),
    *("autoscaling:SetDesiredCapacity", "autoscaling:SuspendProcesses"),
    *("elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"),
    *("imagebuilder:GetComponent", "lambda:InvokeFunction"),
    *("kms:Decrypt", "kms:GenerateDataKey", "kms:GetPublicKey", "kms:Sign"),
    *("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
    *("s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"),
    *("ssm:ResumeSession", "ssm:StartSession", "ssm:TerminateSession", "ssm:UpdateInstanceInformation"),
    *("states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess", "states:StartExecution"),
}
_OWN_SESSIONS = {"ssm:ResumeSession", "ssm:TerminateSession"}
#: What is allowed on every instance, because nobody knows their ids at deployment: conditions narrow it.
_OF_INSTANCES = {"ssm:StartSession", "ssm:UpdateInstanceInformation"}
_WIDE = re.compile(r"\*|arn:[^:]*:[^:]*:[^:]*:[^:]*:([a-z-]+[:/])?\*")
_THROUGH = re.compile(r"(s3|lambda)\.[a-z0-9-]+\.amazonaws\.com")
#: Services that take a role for whoever asks them, unless the role says for which account.
_DEPUTIES = {"events.amazonaws.com", "states.amazonaws.com", "vpc-flow-logs.amazonaws.com"}
_OWN_ACCOUNT = {"StringEquals": {"aws:SourceAccount": ACCOUNT}}
#: Whose policy may allow to sign with which key. Job documents are signed by operators, by no role of the cluster.
SIGNERS = {
    "FoundationEnrolmentPolicy": "<FoundationKeysCertificateAuthority",
    "ClusterWorkerPolicy": "<FoundationKeysModelSigning",
}


def _grants(templates: Templates) -> Iterator[tuple[Resource, dict[str, Any]]]:
    for policy in templates.of(POLICY):
        for statement in allowed(policy.at("PolicyDocument")):
            yield policy, statement


def _takers(templates: Templates, part: str) -> Iterator[tuple[str, str]]:
    """Yield each use of a role in a part: the role, and the service that takes it for that."""
    for profile in templates.of("AWS::IAM::InstanceProfile", part=part):
        yield from ((role, "ec2.amazonaws.com") for role in profile.at("Roles"))
    for kind, key, service in (
        ("AWS::Lambda::Function", "Role", "lambda.amazonaws.com"),
        ("AWS::StepFunctions::StateMachine", "RoleArn", "states.amazonaws.com"),
        ("AWS::EC2::FlowLog", "DeliverLogsPermissionArn", "vpc-flow-logs.amazonaws.com"),
    ):
        yield from ((user.at(key).replace(".Arn", ""), service) for user in templates.of(kind, part=part))
    for rule in templates.of("AWS::Events::Rule", part=part):
        yield from ((target["RoleArn"].replace(".Arn", ""), "events.amazonaws.com") for target in rule.at("Targets"))


def roles_are_taken_by_what_uses_them(templates: Templates) -> Iterator[Problem]:
    for role in templates.of(ROLE):
        takers = {service for name, service in _takers(templates, role.part) if name == f"<{role.name}>"}
        trusted = [
            (statement["Effect"], statement["Action"], statement["Principal"])
            for statement in statements(role.at("AssumeRolePolicyDocument"))
        ]
        if trusted != [("Allow", "sts:AssumeRole", {"Service": service}) for service in sorted(takers)]:
            yield wrong(role, "who takes the role", trusted, f"{sorted(takers)}, whose resources it is used by")


def services_take_roles_for_this_account(templates: Templates) -> Iterator[Problem]:
    for role in templates.of(ROLE):
        for statement in statements(role.at("AssumeRolePolicyDocument")):
            services = set(as_list(statement["Principal"].get("Service", [])))
            if services & _DEPUTIES and statement.get("Condition") != _OWN_ACCOUNT:
                yield wrong(role, "the trust's condition", statement.get("Condition"), f"{_OWN_ACCOUNT}")


def roles_hold_their_own_policy_alone(templates: Templates) -> Iterator[Problem]:
    for role in templates.of(ROLE):
        yield from expect(role, None, "ManagedPolicyArns")
        yield from expect(role, None, "Policies")
    for policy in templates.of(POLICY):
        own = None if policy.name.endswith("Operators") else [f"<{policy.name.removesuffix('Policy')}Role>"]
        yield from expect(policy, own, "Roles")
        yield from expect(policy, None, "Users")
        yield from expect(policy, None, "Groups")


def policies_allow_known_actions(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        if strange := sorted({*actions(statement)} - ACTIONS):
            yield wrong(policy, f"actions of {label(statement)}", strange, "of those that the kit's roles need")


def policies_name_resources(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        wide = [target for target in targets(statement) if _WIDE.fullmatch(target)]
        if wide and (narrow := sorted({*actions(statement)} - UNSCOPABLE - _OF_INSTANCES)):
            yield wrong(policy, f"resources of {label(statement)}", wide, f"named: {', '.join(narrow)} can be scoped")


def policies_reach_own_objects(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        if not any(action.startswith("s3:") for action in actions(statement)):
            continue
        for target in targets(statement):
            if target.endswith(".Arn>/*") or not (target.startswith("<") or ACCOUNT in target):
                yield wrong(
                    policy, f"objects of {label(statement)}", target, "below a prefix of this account's buckets"
                )


def listing_is_by_prefix(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        conditions = statement.get("Condition", {})
        held = [conditions.get(operator, {}).get("s3:prefix") for operator in ("StringEquals", "StringLike")]
        prefixes = [prefix for value in held if value is not None for prefix in as_list(value)]
        if "s3:ListBucket" in actions(statement) and (not prefixes or {*prefixes} & {"", "*"}):
            yield wrong(policy, f"the condition of {label(statement)}", conditions, "one on s3:prefix, not on all")


def signers_are_few(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        if "kms:Sign" not in actions(statement):
            continue
        start = SIGNERS.get(policy.name)
        if start is None or not all(target.startswith(start) for target in targets(statement)):
            yield wrong(policy, f"keys of {label(statement)}", targets(statement), "the CA's for enrolment, the models'"
                        " for workers, none for others")  # fmt: skip


def signatures_are_of_digests(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        if "kms:Sign" in actions(statement) and statement.get("Condition") != DIGEST_ONLY:
            yield wrong(policy, f"the condition of {label(statement)}", statement.get("Condition"), f"{DIGEST_ONLY}")


def the_data_key_is_used_through_a_service(templates: Templates) -> Iterator[Problem]:
    for policy, statement in _grants(templates):
        if DATA_KEY not in targets(statement):
            continue
        conditions = statement.get("Condition", {})
        service = conditions.get("StringEquals", {}).get("kms:ViaService")
        if "kms:EncryptionContext:" not in str(conditions) and not _THROUGH.fullmatch(str(service)):
            yield wrong(policy, f"the condition of {label(statement)}", conditions, "S3 or Lambda as kms:ViaService")


def checkpoints_are_mounted_through_the_access_point(templates: Templates) -> Iterator[Problem]:
    end = ":access-point/<ClusterCheckpointsAccessPoint>"
    for policy, statement in _grants(templates):
        if not any(action.startswith("elasticfilesystem:") for action in actions(statement)):
            continue
        point = statement.get("Condition", {}).get("StringEquals", {}).get("elasticfilesystem:AccessPointArn")
        if not str(point).endswith(end):
            yield wrong(policy, f"AccessPointArn of {label(statement)}", point, f"one that ends in {end}")


def operators_open_their_own_kind_of_session(templates: Templates) -> Iterator[Problem]:
    functions = templates.of("AWS::Lambda::Function")
    cluster = functions[0].at("Environment", "Variables", "HOLDFAST_CLUSTER") if functions else None
    for policy, statement in _grants(templates):
        if not policy.name.endswith("Operators") or set(actions(statement)) <= _OWN_SESSIONS:
            continue
        wanted: dict[str, dict[str, Any]] = {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
        if "ssm:StartSession" in actions(statement):
            wanted["Null"] = {"aws:PrincipalTag/SSMSessionRunAs": "true"}
        if any(":instance/" in target for target in targets(statement)):
            wanted["Bool"]["ssm:SessionDocumentAccessCheck"] = "true"
            wanted["StringEquals"] = {"aws:ResourceTag/holdfast:cluster": cluster}
        if statement.get("Condition") != wanted:
            yield wrong(policy, f"the condition of {label(statement)}", statement.get("Condition"), f"{wanted}")


RULES = (
    roles_are_taken_by_what_uses_them,
    services_take_roles_for_this_account,
    roles_hold_their_own_policy_alone,
    policies_allow_known_actions,
    policies_name_resources,
    policies_reach_own_objects,
    listing_is_by_prefix,
    signers_are_few,
    signatures_are_of_digests,
    the_data_key_is_used_through_a_service,
    checkpoints_are_mounted_through_the_access_point,
    operators_open_their_own_kind_of_session,
)
