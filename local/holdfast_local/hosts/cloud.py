"""What the hypervisor asks AWS: which instances run, their security groups, user data and role credentials."""

import base64
import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
from botocore.config import Config

from holdfast_local.hosts.endpoints import Network, Networks
from holdfast_local.hosts.errors import HostsError
from holdfast_local.hosts.machines.mounts import FileSystems
from holdfast_local.hosts.rules import SecurityGroup
from holdfast_node.contract.roles import CLUSTER_PATTERN, NODE_ROLES, NodeRole

GROUP_TAG = "aws:autoscaling:groupName"
_ALIVE = ("pending", "running")
#: EC2 renews role credentials well before they end; botocore asks again 15 minutes before.
_RENEW_BEFORE = timedelta(minutes=16)
_CONFIG = Config(connect_timeout=3, read_timeout=20, retries={"max_attempts": 3, "mode": "standard"})


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A running instance of one of the cluster's groups; `description` is EC2's own."""

    instance_id: str
    group: str
    role: NodeRole
    address: str
    vpc_id: str
    network: str
    groups: tuple[str, ...]
    description: dict[str, Any]


class Cloud:
    """The hypervisor's view of the AWS that the environment names (`AWS_ENDPOINT_URL` and its companions).

    It sees the instances of one cluster's groups, or by default of every group that is named like a cluster's.
    """

    def __init__(self, cluster: str | None = None, session: boto3.Session | None = None) -> None:
        session = session or boto3.Session()
        self.region = session.region_name
        if not self.region:
            raise HostsError("no region is set; set AWS_REGION to the embedded AWS's region")
        self._cluster = cluster
        self._ec2, self._iam, self._sts, self._efs, resolver = (
            session.client(name, config=_CONFIG) for name in ("ec2", "iam", "sts", "efs", "route53resolver")
        )
        self._vpcs = Networks(ec2=self._ec2, efs=self._efs, resolver=resolver, region=self.region)
        self._networks: dict[str, str] = {}

    def instances(self) -> list[Instance]:
        """Return the instances of the cluster's groups that are pending or running, in order of their ids."""
        found = []
        pages = self._ec2.get_paginator("describe_instances").paginate()
        for description in (i for page in pages for r in page["Reservations"] for i in r["Instances"]):
            tags = {tag["Key"]: tag["Value"] for tag in description.get("Tags", ())}
            group, address = tags.get(GROUP_TAG, ""), description.get("PrivateIpAddress")
            role = self._role(group)
            if role is None or description["State"]["Name"] not in _ALIVE or not address:
                continue
            attached = description.get("SecurityGroups") or [
                item for interface in description.get("NetworkInterfaces", ()) for item in interface.get("Groups", ())
            ]
            found.append(
                Instance(
                    instance_id=description["InstanceId"],
                    group=group,
                    role=role,
                    address=address,
                    vpc_id=description.get("VpcId", ""),
                    network=self._network(description.get("VpcId", "")),
                    groups=tuple(sorted(item["GroupId"] for item in attached)),
                    description=description,
                )
            )
        return sorted(found, key=lambda instance: instance.instance_id)

    def security_groups(self, group_ids: set[str]) -> dict[str, SecurityGroup]:
        """Return the rules of these security groups."""
        if not group_ids:
            return {}
        answer = self._ec2.describe_security_groups(GroupIds=sorted(group_ids))
        return {group["GroupId"]: SecurityGroup.parse(group) for group in answer["SecurityGroups"]}

    def networks(self, vpc_ids: set[str]) -> list[Network]:
        """Return these VPCs with their endpoints."""
        return self._vpcs.read(vpc_ids)

    def user_data(self, instance_id: str) -> str:
        """Return an instance's user data, decoded; empty if it has none."""
        answer = self._ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
        return base64.b64decode(answer.get("UserData", {}).get("Value", "")).decode()

    def account(self) -> str:
        """Return the account's id."""
        return str(self._sts.get_caller_identity()["Account"])

    def profile(self, instance: Instance) -> dict[str, Any] | None:
        """Return the instance profile of an instance, or None if it has none."""
        arn = instance.description.get("IamInstanceProfile", {}).get("Arn")
        if not arn:
            return None
        answer = self._iam.get_instance_profile(InstanceProfileName=arn.rsplit("/", 1)[-1])
        return dict(answer["InstanceProfile"])

    def file_systems(self) -> FileSystems:
        """Return the account's file systems."""
        return FileSystems(efs=self._efs, iam=self._iam)

    def terminate(self, instance_id: str) -> None:
        """Terminate an instance, as EC2 does with one that powers itself off and was launched to end so."""
        self._ec2.terminate_instances(InstanceIds=[instance_id])

    def credentials(self, role_arn: str, instance_id: str) -> "RoleCredentials":
        """Return the credentials of a role for an instance, fetched when first read."""
        return RoleCredentials(self._sts, role_arn, instance_id)

    def _role(self, group: str) -> NodeRole | None:
        """Return the role of a group named `<cluster>-<role>`, or None if it is not the cluster's."""
        cluster, _, name = group.rpartition("-")
        role = {str(role): role for role in NODE_ROLES}.get(name)
        if role is None or self._cluster not in (None, cluster) or not CLUSTER_PATTERN.fullmatch(cluster):
            return None
        return role

    def _network(self, vpc_id: str) -> str:
        if vpc_id not in self._networks:
            self._networks[vpc_id] = self._ec2.describe_vpcs(VpcIds=[vpc_id])["Vpcs"][0]["CidrBlock"]
        return self._networks[vpc_id]


class RoleCredentials:
    """A role's temporary credentials for one instance, as the metadata service gives them; renewed before they end.

    The session's name is the instance id, as on EC2, so that STS tells every service which instance calls.
    """

    def __init__(self, sts: Any, role_arn: str, instance_id: str) -> None:
        self._sts, self._role_arn, self._instance_id = sts, role_arn, instance_id
        self._lock = threading.Lock()
        self._until = datetime.min.replace(tzinfo=UTC)
        self._document = ""

    def document(self) -> str:
        """Return the JSON document of `iam/security-credentials/<role>`."""
        with self._lock:
            now = datetime.now(UTC)
            if now + _RENEW_BEFORE >= self._until:
                answer = self._sts.assume_role(RoleArn=self._role_arn, RoleSessionName=self._instance_id)
                given = answer["Credentials"]
                self._until = given["Expiration"]
                self._document = json.dumps(
                    {
                        "Code": "Success",
                        "LastUpdated": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "Type": "AWS-HMAC",
                        "AccessKeyId": given["AccessKeyId"],
                        "SecretAccessKey": given["SecretAccessKey"],
                        "Token": given["SessionToken"],
                        "Expiration": self._until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    }
                )
            return self._document
