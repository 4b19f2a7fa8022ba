"""The predictor: instances of their own that serve one signed model, and that no job raises."""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from holdfast.conditions import via_s3
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge_keys
from holdfast.foundation import ClusterFoundation
from holdfast.network import PrivateNetwork
from holdfast.node_policy import boot_records, every_node
from holdfast.security_groups import allow_between, closed_security_group
from holdfast.training.fleet import FleetProps, NodeFleet
from holdfast.training.user_data import node_user_data
from holdfast_node.contract.documents import NodeConfig, Predictions
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.layout import ModelsBucket
from holdfast_node.contract.roles import DEFAULT_PORTS, PRIVATE_RANGES, Serving


@dataclass(frozen=True, kw_only=True)
class PredictorClients:
    """Who may open connections to the predictor's port: security groups and private IPv4 ranges. Default: nobody.

    Raises:
        PropertyError: a range is not one, or not private.
    """

    security_groups: Sequence[ec2.ISecurityGroup] = ()
    ranges: Sequence[str] = ()

    def __post_init__(self) -> None:
        for text in self.ranges:
            try:
                network = IPv4Network(text)
            except ValueError as error:
                raise PropertyError(f"a client range must be an IPv4 network, got {text!r}: {error}") from None
            if not any(network.subnet_of(private) for private in PRIVATE_RANGES):
                allowed = ", ".join(map(str, PRIVATE_RANGES))
                raise PropertyError(f"a client range must be in {allowed}, got {text}; the endpoint is private")


class PredictorFleet(Construct):
    """A node role that serves the predictions of one job's signed model over mutual TLS, on one port.

    It has no instance until somebody raises its group (`aws autoscaling set-desired-capacity`), a security group that
    admits nobody until `clients` names somebody, and an IAM role that reads this model, its public key, and nothing
    of jobs. It mounts no file system. What its answers hold is `predictions`'s to say; by default labels only.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        foundation: ClusterFoundation,
        network: PrivateNetwork,
        fleet: FleetProps,
        predictions: Predictions,
        clients: PredictorClients | None = None,
    ) -> None:
        """Make the fleet, at zero.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            foundation: the cluster's keys, buckets, enrolment function and node bundle.
            network: where instances start.
            fleet: instance type and limit.
            predictions: the job whose model is served, what leaves, and the limits.
            clients: who may connect. Default: nobody.

        Raises:
            PropertyError: the predictions' settings cannot work.
        """
        super().__init__(scope, construct_id)
        role, port, clients = Serving.PREDICTOR, predictions.port, clients or PredictorClients()
        name = foundation.cluster_name
        self.security_group = closed_security_group(
            self, "SecurityGroup", vpc=network.vpc, description=f"Holdfast {name}: {role}"
        )
        self.fleet = NodeFleet(
            self,
            "Nodes",
            cluster_name=name,
            role=role,
            props=fleet,
            network=network,
            security_group=self.security_group,
            encryption_key=foundation.keys.data,
            statements=_statements(foundation, predictions.job_id),
            user_data=_user_data(self, foundation, predictions, fleet),
        )
        acknowledge_keys(
            self.fleet.policy,
            foundation.buckets.models,
            f"{ModelsBucket.prefix(predictions.job_id)}*",
            reason="A model's files have names that only its script knows; the prefix is one job's.",
        )
        if foundation.sessions is not None:
            foundation.sessions.acknowledge_wildcards(self.fleet.policy)
        acknowledge_keys(
            self.fleet.policy,
            foundation.buckets.jobs,
            boot_records(role),
            reason="A boot's record ends in the id of an instance that does not exist yet; the prefix is the role's.",
        )
        self._allow_traffic(network, port, clients)
        #: The predictors' connections; `allow_from` on its port lets in more.
        self.connections = ec2.Connections(security_groups=[self.security_group], default_port=ec2.Port.tcp(port))

    def _allow_traffic(self, network: PrivateNetwork, port: int, clients: PredictorClients) -> None:
        network.allow_services(self, "", source=self.security_group, who="predictor")
        for group in clients.security_groups:
            allow_between(
                self,
                f"From{group.node.id}",
                source=group,
                target=self.security_group,
                port=port,
                description="clients to predictor",
            )
        for text in clients.ranges:
            ec2.CfnSecurityGroupIngress(
                self,
                f"From{text.replace('.', '-').replace('/', '-')}",
                group_id=self.security_group.security_group_id,
                cidr_ip=text,
                ip_protocol="tcp",
                from_port=port,
                to_port=port,
                description="clients to predictor",
            )


def _statements(foundation: ClusterFoundation, job_id: str) -> list[iam.PolicyStatement]:
    keys, buckets = foundation.keys, foundation.buckets
    return [
        *every_node(foundation, Serving.PREDICTOR),
        iam.PolicyStatement(sid="VerifyModels", actions=["kms:GetPublicKey"], resources=[keys.model_signing.key_arn]),
        iam.PolicyStatement(
            sid="EncryptedObjects",
            actions=["kms:Decrypt", "kms:GenerateDataKey"],
            resources=[keys.data.key_arn],
            conditions=via_s3(foundation),
        ),
        iam.PolicyStatement(
            sid="ReadModel",
            actions=["s3:GetObject"],
            resources=[
                buckets.models.arn_for_objects(ModelsBucket.bundle(job_id)),
                buckets.models.arn_for_objects(f"{ModelsBucket.prefix(job_id)}*"),
            ],
        ),
    ]


def _user_data(scope: Construct, foundation: ClusterFoundation, predictions: Predictions, fleet: FleetProps) -> str:
    config = NodeConfig(
        cluster=foundation.cluster_name,
        role=Serving.PREDICTOR,
        region=Stack.of(scope).region,
        ports=dict(DEFAULT_PORTS),
        jobs_bucket=foundation.buckets.jobs.bucket_name,
        models_bucket=foundation.buckets.models.bucket_name,
        enrolment_function=foundation.enrolment.function.function_name,
        job_signing_key="",
        model_signing_key=foundation.keys.model_signing.key_arn,
        log_group=foundation.node_log.log_group_name,
        file_system_id="",
        access_point_id="",
        bundle=foundation.bundle.document,
        wheelhouse=foundation.wheelhouse.document if foundation.wheelhouse else None,
        remote_access=foundation.remote_access,
        scratch_device=fleet.scratch_device,
        predictions=predictions,
    )
    try:
        predictions.validate()
        return node_user_data(config)
    except DocumentError as error:
        raise PropertyError(f"the predictor's properties do not make a node's configuration: {error}") from None
