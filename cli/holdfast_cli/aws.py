"""The AWS session of a command, and the cluster that it works on.

Every client has a connect and a read time-out and a bounded number of attempts. Nothing here is imported before a
command needs AWS: boto3 takes half a second to load.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from holdfast_cli.errors import ClusterError
from holdfast_node.contract.roles import CLUSTER_PATTERN

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 60
MAX_ATTEMPTS = 4
STACK_PREFIX = "Holdfast-"
STACK_SUFFIX = "-Training"

#: What the training stack's outputs are called, by the field of `Cluster` that holds them.
OUTPUTS = {
    "name": "ClusterName",
    "jobs_bucket": "JobsBucket",
    "models_bucket": "ModelsBucket",
    "job_signing_key": "JobSigningKey",
    "model_signing_key": "ModelSigningKey",
    "state_machine": "StateMachine",
    "log_group": "NodeLogGroup",
    "max_workers": "MaxWorkers",
    "max_servers": "MaxServers",
    "min_job_seconds": "MinJobSeconds",
    "max_job_seconds": "MaxJobSeconds",
    "max_restarts": "MaxRestarts",
    "engine": "Engine",
    "node_boot": "NodeBoot",
}


#: The value of the output NodeBoot where the node bundle can install itself on EC2.
BOOTS_ON_EC2 = "ec2"
_SWEEP_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(_.*)?")
LOOPBACK = {"127.0.0.1", "localhost"}


class Aws:
    """Clients of one region, made on first use. Credentials and endpoint come from boto3's usual chain."""

    def __init__(self, region: str | None = None) -> None:
        self._region = region
        self._clients: dict[str, Any] = {}

    @cached_property
    def _session(self) -> Any:
        import boto3

        return boto3.Session(region_name=self._region)

    def client(self, service: str) -> Any:
        """Return the client of a service, with time-outs and bounded retries."""
        if service not in self._clients:
            from botocore.config import Config

            config = Config(
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                read_timeout=READ_TIMEOUT_SECONDS,
                retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            )
            self._clients[service] = self._session.client(service, config=config)
        return self._clients[service]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A deployed cluster: where its parts are and what it allows, read from its training stack's outputs."""

    aws: Aws
    name: str
    jobs_bucket: str
    models_bucket: str
    job_signing_key: str
    model_signing_key: str
    state_machine: str
    log_group: str
    max_workers: int
    max_servers: int
    min_job_seconds: int
    max_job_seconds: int
    max_restarts: int
    engine: str
    node_boot: str

    def client(self, service: str) -> Any:
        """Return the client of a service in the cluster's region."""
        return self.aws.client(service)

    def executions(self, **filters: str) -> Iterator[dict[str, Any]]:
        """Yield the executions of jobs, newest first, at most 100; the state machine's own sweeps are left out.

        A sweep lowers what an execution that was cut off has left; EventBridge starts it under a UUID for a name.
        """
        pages = (
            self.client("stepfunctions")
            .get_paginator("list_executions")
            .paginate(stateMachineArn=self.state_machine, PaginationConfig={"MaxItems": 100}, **filters)
        )
        for page in pages:
            yield from (item for item in page["executions"] if not _SWEEP_NAME.fullmatch(item["name"]))

    @property
    def nodes_can_boot(self) -> bool:
        """Whether instances of this cluster become nodes: on EC2 only with a bundle that installs itself there."""
        endpoint = urlsplit(self.client("ec2").meta.endpoint_url).hostname
        return self.node_boot == BOOTS_ON_EC2 or endpoint in LOOPBACK

    def execution_arn(self, job_id: str) -> str:
        """Return the ARN of a job's execution: the state machine's, with the job's id as the execution's name."""
        return f"{self.state_machine.replace(':stateMachine:', ':execution:', 1)}:{job_id}"


def use_local_environment() -> None:
    """Point this process at the embedded AWS of this machine.

    Raises:
        ClusterError: the local tools are not installed, or nothing is running.
    """
    try:
        from holdfast_local.session import environment
    except ImportError:
        raise ClusterError(
            "--local needs the package holdfast_local, which is not installed here; run this command from a checkout "
            "(see the README) or leave out --local and unset HOLDFAST_LOCAL"
        ) from None
    variables = environment()
    # A profile or session token of the real account must never be mixed with the embedded AWS's credentials.
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        os.environ.pop(name, None)
    os.environ.update(variables)


def find_cluster(aws: Aws, name: str | None) -> Cluster:
    """Return the named cluster, or the only one in this account and region.

    Raises:
        ClusterError: none, or several and no name, or not completely deployed.
    """
    if name is not None:
        return _from_outputs(aws, _named_stack(aws, name))
    stacks = {_cluster_name(stack): stack for stack in _training_stacks(aws)}
    if not stacks:
        raise ClusterError(
            f"no cluster found: no stack named {STACK_PREFIX}<cluster>{STACK_SUFFIX} in this account and region; "
            "deploy one with `cdk deploy --all`, or check --region and AWS_PROFILE"
        )
    if len(stacks) > 1:
        raise ClusterError(
            f"which cluster? There are {len(stacks)}: {', '.join(sorted(stacks))}; "
            "choose with --cluster NAME or HOLDFAST_CLUSTER"
        )
    (stack,) = stacks.values()
    return _from_outputs(aws, stack)


def _named_stack(aws: Aws, name: str) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    if not CLUSTER_PATTERN.fullmatch(name):
        raise ClusterError(f"a cluster's name matches {CLUSTER_PATTERN.pattern}, got {name!r}; correct --cluster")
    try:
        reply = aws.client("cloudformation").describe_stacks(StackName=f"{STACK_PREFIX}{name}{STACK_SUFFIX}")
    except ClientError as error:
        if "does not exist" not in str(error):
            raise
        names = sorted(_cluster_name(stack) for stack in _training_stacks(aws))
        found = f"found: {', '.join(names)}" if names else "there is none in this account and region"
        raise ClusterError(f"no cluster named {name!r} ({found}); check --cluster, --region and AWS_PROFILE") from None
    return dict(reply["Stacks"][0])


def _training_stacks(aws: Aws) -> Iterator[dict[str, Any]]:
    for page in aws.client("cloudformation").get_paginator("describe_stacks").paginate():
        for stack in page["Stacks"]:
            if stack["StackName"].startswith(STACK_PREFIX) and stack["StackName"].endswith(STACK_SUFFIX):
                yield stack


def _cluster_name(stack: dict[str, Any]) -> str:
    return str(stack["StackName"][len(STACK_PREFIX) : -len(STACK_SUFFIX)])


def _from_outputs(aws: Aws, stack: dict[str, Any]) -> Cluster:
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    if missing := sorted(set(OUTPUTS.values()) - set(outputs)):
        raise ClusterError(
            f"stack {stack['StackName']} is {stack['StackStatus']} and lacks the outputs {', '.join(missing)}; "
            "deploy it completely with `cdk deploy --all` from this version"
        )
    values: dict[str, Any] = {field: outputs[key] for field, key in OUTPUTS.items()}
    for field in ("max_workers", "max_servers", "min_job_seconds", "max_job_seconds", "max_restarts"):
        if not values[field].isascii() or not values[field].isdigit():
            raise ClusterError(
                f"output {OUTPUTS[field]} of stack {stack['StackName']} must be a number, got {values[field]!r}; "
                "deploy it again with `cdk deploy --all` from this version"
            )
        values[field] = int(values[field])
    return Cluster(aws=aws, **values)
