"""The training cluster: fleets, rules between them, checkpoints and jobs."""

from collections.abc import Mapping

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from constructs import Construct

from holdfast.errors import PropertyError
from holdfast.foundation import ClusterFoundation
from holdfast.network import PrivateNetwork
from holdfast.security_groups import NFS, allow_between, closed_security_group
from holdfast.training.checkpoints import CheckpointRetention, CheckpointStore
from holdfast.training.fleet import FleetProps, NodeFleet
from holdfast.training.jobs import JobLimits, JobStateMachine
from holdfast.training.policies import CHECKPOINTING, acknowledge_wildcards, node_statements
from holdfast.training.user_data import node_user_data
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import DEFAULT_PORTS, DIALS, Role


class TrainingCluster(Construct):
    """One scheduler, servers and workers that can talk to each other on pinned ports and to nobody else.

    At rest it has no instances. A job is one execution of `jobs.state_machine`.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        foundation: ClusterFoundation,
        network: PrivateNetwork,
        scheduler: FleetProps,
        servers: FleetProps,
        workers: FleetProps,
        ports: Mapping[Role, int] = DEFAULT_PORTS,
        limits: JobLimits | None = None,
        retention: CheckpointRetention | None = None,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        """Make the cluster.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            foundation: the cluster's keys, buckets, enrolment function and node bundle.
            network: where nodes live.
            scheduler: its instance type; there is one per job.
            servers: instance type and limit.
            workers: instance type and limit.
            ports: one distinct port per role. Default: 9091, 9092 and 9093.
            limits: what no job may exceed. Default: four hours, ten minutes of silence, nodes lost after 15 s.
            retention: which checkpoints of a job its writer keeps. Default: the last three for thirty days, and the
                one with the lowest loss.
            removal_policy: what happens to checkpoints and the job log. Default: kept, unless its creation failed.

        Raises:
            PropertyError: the ports are not one distinct port per role, or there is more than one scheduler.
        """
        super().__init__(scope, construct_id)
        if scheduler.max_count != 1:
            raise PropertyError(f"scheduler max_count must be 1, got {scheduler.max_count}; a job has one scheduler")
        self.foundation = foundation
        self.network = network
        self.ports = dict(ports)
        self.limits = limits or JobLimits()
        names = foundation.names
        self.retention = retention or CheckpointRetention()
        self.checkpoints = CheckpointStore(
            self,
            "Checkpoints",
            cluster_name=foundation.cluster_name,
            network=network,
            encryption_key=foundation.keys.data,
            retention=self.retention,
            removal_policy=removal_policy,
        )
        self.security_groups = {
            role: closed_security_group(
                self, f"{role.title()}Group", vpc=network.vpc, description=f"Holdfast {foundation.cluster_name}: {role}"
            )
            for role in Role
        }
        self._allow_traffic()
        props = {Role.SCHEDULER: scheduler, Role.SERVER: servers, Role.WORKER: workers}
        state_machine_arn = names.state_machine_arn(Stack.of(self))
        self.fleets = {
            role: NodeFleet(
                self,
                role.title(),
                cluster_name=foundation.cluster_name,
                role=role,
                props=props[role],
                network=network,
                security_group=self.security_groups[role],
                encryption_key=foundation.keys.data,
                statements=node_statements(
                    role,
                    foundation=foundation,
                    checkpoints=self.checkpoints,
                    state_machine_arn=state_machine_arn,
                    gpu=props[role].gpu,
                ),
                user_data=self._user_data(role, props[role]),
            )
            for role in Role
        }
        for role, fleet in self.fleets.items():
            acknowledge_wildcards(role, fleet.policy, foundation)
            if foundation.sessions is not None:
                foundation.sessions.acknowledge_wildcards(fleet.policy)
        self.jobs = JobStateMachine(
            self,
            "Jobs",
            foundation=foundation,
            groups={role: fleet.group for role, fleet in self.fleets.items()},
            max_counts={role: fleet_props.max_count for role, fleet_props in props.items()},
            limits=self.limits,
            removal_policy=removal_policy,
        )
        #: All nodes' connections. Rules between roles are already there.
        self.connections = ec2.Connections(security_groups=list(self.security_groups.values()))

    def grant_submit(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` use the operator's commands: submit, status, logs and fetch.

        It can find this cluster by its name (`--cluster`), sign, store and start jobs, and read what becomes of them.
        It cannot change the cluster, lower it, or read another job's code.
        """
        self._grant_find(grantee)
        self.foundation.grant_sign_jobs(grantee)
        self.foundation.grant_read_results(grantee)
        self.jobs.grant_start(grantee)
        self.jobs.grant_watch(grantee)

    def grant_revoke(self, grantee: iam.IGrantable) -> None:
        """Let `grantee` use `holdfast revoke`: cut an instance off, for ever, and see which are.

        It is not part of `grant_submit`: whoever runs jobs need not be able to end those of others.
        """
        self._grant_find(grantee)
        self.foundation.grant_revoke(grantee)

    def _grant_find(self, grantee: iam.IGrantable) -> None:
        stack = Stack.of(self)
        own = stack.format_arn(service="cloudformation", resource="stack", resource_name=f"{stack.stack_name}/*")
        iam.Grant.add_to_principal(grantee=grantee, actions=["cloudformation:DescribeStacks"], resource_arns=[own])

    def _allow_traffic(self) -> None:
        """Add every rule there is: the six pairs that dial each other, and what each role needs around them."""
        for source, targets in DIALS.items():
            for target in targets:
                allow_between(
                    self,
                    f"{source.title()}To{target.title()}",
                    source=self.security_groups[source],
                    target=self.security_groups[target],
                    port=self.ports[target],
                    description=f"{source} to {target}",
                )
        for role, group in self.security_groups.items():
            self.network.allow_services(self, role.title(), source=group, who=role)
            if role in CHECKPOINTING:
                allow_between(
                    self,
                    f"{role.title()}ToCheckpoints",
                    source=group,
                    target=self.checkpoints.security_group,
                    port=NFS,
                    description=f"{role} to checkpoints: NFS over TLS",
                )

    def _user_data(self, role: Role, props: FleetProps) -> str:
        foundation, mounts = self.foundation, role in CHECKPOINTING
        wheels = foundation.wheels(gpu=props.gpu)
        config = NodeConfig(
            cluster=foundation.cluster_name,
            role=role,
            region=Stack.of(self).region,
            ports=self.ports,
            jobs_bucket=foundation.buckets.jobs.bucket_name,
            models_bucket=foundation.buckets.models.bucket_name,
            enrolment_function=foundation.enrolment.function.function_name,
            job_signing_key=foundation.keys.job_signing.key_arn,
            model_signing_key=foundation.keys.model_signing.key_arn,
            log_group=foundation.node_log.log_group_name,
            file_system_id=self.checkpoints.file_system.file_system_id if mounts else "",
            access_point_id=self.checkpoints.access_point.access_point_id if mounts else "",
            bundle=foundation.bundle.document,
            wheelhouse=wheels.document if wheels else None,
            remote_access=foundation.remote_access,
            scratch_device=props.scratch_device,
            retention=self.retention.document,
            lost_seconds=self.limits.lost_seconds,
            join_seconds=self.limits.join_seconds,
        )
        try:
            return node_user_data(config)
        except DocumentError as error:
            raise PropertyError(f"the cluster's properties do not make a node's configuration: {error}") from None
