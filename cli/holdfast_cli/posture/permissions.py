"""Checks of the cluster's IAM roles: who may take each, and what it may do then."""

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast_cli.posture import duties
from holdfast_cli.posture.duties import Duty
from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_cli.posture.statements import Statement, parse, said
from holdfast_node.contract.documents import RemoteAccess
from holdfast_node.contract.roles import group_name

_READS, _WRITES = {"s3:GetObject"}, {"s3:DeleteObject", "s3:PutObject"}


def duties_of(inventory: Inventory) -> dict[str, Duty | None]:
    """Return every role of the stacks with its duty; None for those that only their trust tells apart."""
    found: dict[str, Duty | None] = dict.fromkeys(inventory.of("IAM::Role"))
    for role in inventory.roles:
        sessions = inventory.config(role).remote_access is RemoteAccess.SESSION_MANAGER
        found[inventory.role_name(role)] = duties.of_node(role, sessions=sessions)
    (function,) = inventory.of("Lambda::Function")
    config = inventory.reader.get("lambda:GetFunctionConfiguration", FunctionName=function) or {}
    found[str(config["Role"]).rpartition("/")[2]] = duties.ENROLMENT
    machine = (
        inventory.reader.get(
            "states:DescribeStateMachine", stateMachineArn=inventory.cluster.state_machine, includedData="METADATA_ONLY"
        )
        or {}
    )
    found[str(machine["roleArn"]).rpartition("/")[2]] = duties.JOBS
    return found


def _trust(inventory: Inventory, role: str) -> tuple[Statement, ...]:
    answer = inventory.reader.get("iam:GetRole", RoleName=role) or {}
    return parse(answer["Role"]["AssumeRolePolicyDocument"], f"the trust policy of role {role}")


def look_at_trust(inventory: Inventory) -> Outcome:
    """Look whether each role is taken by the one service that it is for."""
    found = duties_of(inventory)
    own = inventory.of("IAM::Role")
    problems = [f"role {name} is in use and not the cluster's" for name in found if name not in own]
    for name, duty in sorted(found.items()):
        problems += [f"role {name}: {fault}" for fault in _trust_faults(inventory, _trust(inventory, name), duty)]
    return Outcome(f"{len(found)} roles", tuple(problems))


def _trust_faults(inventory: Inventory, statements: tuple[Statement, ...], duty: Duty | None) -> Iterator[str]:
    services = {duty.service} if duty else set(duties.OTHERS)
    for item in statements:
        if not item.allows:
            continue
        others = [name for name in item.principals if name not in services]
        if others or item.inverted:
            yield f"{', '.join(others) or 'whoever it does not name'} may take it"
        if item.actions != ("sts:AssumeRole",):
            yield f"it may be taken by {', '.join(item.actions)}"
        if (duty is None or duty.own_account) and not item.holds_to(inventory.account):
            yield "a service may take it for another account"
    if len(statements) != 1:
        yield f"its trust has {len(statements)} statements and not one"


def look_at_policies(inventory: Inventory) -> Outcome:
    """Look whether each role has its one policy, and whether that allows what the role does and no more."""
    scope = _Scope.of(inventory)
    found = duties_of(inventory)
    problems = [
        f"role {name}: {fault}"
        for name, duty in sorted(found.items())
        for fault in _role_faults(inventory, scope, name, duty)
    ]
    return Outcome(f"{len(found)} roles, one customer managed policy each", tuple(problems))


def _role_faults(inventory: Inventory, scope: "_Scope", name: str, duty: Duty | None) -> Iterator[str]:
    reader, own = inventory.reader, inventory.of("IAM::ManagedPolicy")
    for inline in reader.every("iam:ListRolePolicies", RoleName=name):
        yield f"it has the inline policy {inline}"
    attached = [item["PolicyArn"] for item in reader.every("iam:ListAttachedRolePolicies", RoleName=name)]
    for arn in attached:
        if arn not in own:
            yield f"the policy {arn} is attached, which is not the cluster's"
    mine = [arn for arn in attached if arn in own]
    if len(mine) != 1:
        yield f"{len(mine)} policies of the cluster are attached and not one"
    for arn in mine:
        version = (reader.get("iam:GetPolicy", PolicyArn=arn) or {})["Policy"]["DefaultVersionId"]
        answer = reader.get("iam:GetPolicyVersion", PolicyArn=arn, VersionId=version) or {}
        for statement in parse(answer["PolicyVersion"]["Document"], f"policy {arn}"):
            if statement.allows:
                for fault in _statement_faults(scope, statement, duty or _told_by_trust(inventory, name)):
                    yield f"{fault} ({said(statement)}, version {version})"


def _told_by_trust(inventory: Inventory, name: str) -> Duty:
    principals = {principal for statement in _trust(inventory, name) for principal in statement.principals}
    found = [duty for service, duty in duties.OTHERS.items() if service in principals]
    if len(found) != 1:
        raise Unreadable(f"the trust of role {name} does not say which of the cluster's roles it is")
    return found[0]


def _statement_faults(scope: "_Scope", statement: Statement, duty: Duty) -> Iterator[str]:
    if statement.inverted:
        yield "it allows what it does not name"
    for action in statement.actions:
        if action not in duty.actions:
            yield f"it allows {action}"
            continue
        condition = duties.CONDITIONED.get(action)
        if condition and not statement.names(condition):
            yield f"it allows {action} without a condition on {condition}"
        for resource in statement.resources:
            if not scope.covers(action, resource, duty, conditioned=bool(statement.conditions)):
                yield f"it allows {action} on {resource}"


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """The ARNs that policies of the cluster may name."""

    buckets: tuple[str, ...]
    code: frozenset[str]
    data_key: str
    exact: frozenset[str]
    own: str
    name: str
    region_and_account: str
    groups: tuple[str, ...]

    @classmethod
    def of(cls, inventory: Inventory) -> "_Scope":
        own = f"arn:{inventory.partition}"
        place = f"{inventory.region}:{inventory.account}"
        configs = [inventory.config(role) for role in inventory.roles]
        parts = [part for config in configs for part in (config.bundle, config.wheelhouse) if part is not None]
        (function,), (system,) = inventory.of("Lambda::Function"), inventory.of("EFS::FileSystem")
        keys = {f"{own}:kms:{place}:key/{name.rpartition('/')[2]}" for name in inventory.of("KMS::Key")}
        buckets = (inventory.cluster.jobs_bucket, inventory.cluster.models_bucket)
        return cls(
            buckets=tuple(f"{own}:s3:::{name}" for name in buckets),
            code=frozenset(f"{own}:s3:::{part.bucket}/{part.key}" for part in parts),
            data_key=inventory.data_key,
            exact=frozenset(
                {
                    *keys,
                    inventory.cluster.state_machine,
                    f"{own}:lambda:{place}:function:{function}",
                    f"{own}:elasticfilesystem:{place}:file-system/{system}",
                }
            ),
            own=own,
            name=inventory.name,
            region_and_account=place,
            groups=tuple(group_name(inventory.name, role) for role in inventory.roles),
        )

    def covers(self, action: str, resource: str, duty: Duty, *, conditioned: bool) -> bool:
        """Return whether a role with this duty may have this action on this resource."""
        service = action.partition(":")[0]
        place = f"{self.own}:{service}:{self.region_and_account}"
        if resource == "*":
            return action in duties.UNSCOPED
        if service == "s3":
            return resource in self.buckets if action == "s3:ListBucket" else self._object(action, resource, duty)
        if resource == self.data_key:
            # Only for a service that names itself, or what it encrypts, does the data key answer.
            return conditioned
        if service == "logs":
            groups = (f"{place}:log-group:/holdfast/{self.name}/",)
            return resource.startswith(groups) or (action, resource) == (
                "logs:DescribeLogGroups",
                f"{place}:log-group:*",
            )
        if service == "autoscaling":
            return resource.startswith(f"{place}:autoScalingGroup:") and resource.endswith(
                tuple(f":autoScalingGroupName/{name}" for name in self.groups)
            )
        if service == "acm-pca":
            return resource.startswith(f"{place}:certificate-authority/") and "*" not in resource
        if action == "ssm:UpdateInstanceInformation":
            return resource == f"{self.own}:ec2:{self.region_and_account}:instance/*"
        return resource in self.exact

    def _object(self, action: str, resource: str, duty: Duty) -> bool:
        if action in _READS and resource in self.code:
            return True
        bucket, _, key = resource.partition("/")
        allowed = duty.reads if action in _READS else duty.writes
        return bucket in self.buckets and action in _READS | _WRITES and key.startswith(allowed)


_REMEDY = "and see in CloudTrail who changed it and what was done with it since"
CHECKS = (
    Check(
        name="role-policies",
        row="B1",
        claim="each role has one customer managed policy, with the actions and resources of its duty, and no other",
        remedy=f"detach the foreign policy or make the policy's former version the default again, {_REMEDY}",
        look=look_at_policies,
    ),
    Check(
        name="role-trust",
        row="B1",
        claim="each role can be taken by the one service that it is for, and by nobody else",
        remedy=f"put the trust policy back as the stack has it, {_REMEDY}",
        look=look_at_trust,
    ),
)
