"""The training stack: fleets at zero, checkpoints, the job state machine, and what operators' tools read."""

from aws_cdk import CfnOutput
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from holdfast import (
    CheckpointRetention,
    ClusterFoundation,
    FleetProps,
    JobLimits,
    PredictorClients,
    PredictorFleet,
    PrivateNetwork,
    TrainingCluster,
    golden_image,
)
from holdfast_node.contract.documents import Predictions
from holdfast_node.contract.roles import Role
from stacks.base import ClusterStack
from stacks.instances import has_gpu
from stacks.settings import Fleet, Scheduler, Settings


class TrainingStack(ClusterStack):
    """The cluster that trains."""

    def __init__(
        self, scope: Construct, *, settings: Settings, foundation: ClusterFoundation, network: PrivateNetwork
    ) -> None:
        super().__init__(scope, "Training", settings=settings, description="fleets, checkpoints and jobs")
        max_seconds = settings.limits.max_hours * 3600
        self.cluster = TrainingCluster(
            self,
            "Cluster",
            foundation=foundation,
            network=network,
            scheduler=_fleet(settings, settings.scheduler),
            servers=_fleet(settings, settings.servers, settings.servers.max),
            workers=_fleet(settings, settings.workers, settings.workers.max),
            ports={
                Role.SCHEDULER: settings.ports.scheduler,
                Role.SERVER: settings.ports.server,
                Role.WORKER: settings.ports.worker,
            },
            limits=JobLimits(
                max_seconds=max_seconds,
                heartbeat_seconds=settings.limits.heartbeat_seconds,
                lost_seconds=settings.limits.lost_seconds,
                join_seconds=settings.limits.join_seconds,
            ),
            retention=CheckpointRetention(**settings.checkpoints.model_dump()),
            removal_policy=self.data_removal,
        )
        self.predictor = self._predictor(settings, foundation, network)
        cluster, keys, buckets = self.cluster, foundation.keys, foundation.buckets
        groups = {role: fleet.group.auto_scaling_group_name for role, fleet in cluster.fleets.items()}
        outputs = {
            "ClusterName": settings.cluster.name,
            "Engine": settings.cluster.engine.value,
            "JobsBucket": buckets.jobs.bucket_name,
            "ModelsBucket": buckets.models.bucket_name,
            "JobSigningKey": keys.job_signing.key_arn,
            "ModelSigningKey": keys.model_signing.key_arn,
            "DataKey": keys.data.key_arn,
            "StateMachine": cluster.jobs.state_machine.state_machine_arn,
            "NodeLogGroup": foundation.node_log.log_group_name,
            "MaxWorkers": str(settings.workers.max),
            "MaxServers": str(settings.servers.max),
            "MaxJobSeconds": str(max_seconds),
            "MinJobSeconds": str(settings.limits.heartbeat_seconds + 1),
            "MaxRestarts": str(settings.limits.max_restarts),
            "SchedulerGroup": groups[Role.SCHEDULER],
            "ServerGroup": groups[Role.SERVER],
            "WorkerGroup": groups[Role.WORKER],
            "NodeBoot": "ec2" if foundation.bundle.boots_on_ec2 else "local-hosts-only",
            "FileSystem": cluster.checkpoints.file_system.file_system_id,
        }
        if self.predictor is not None:
            outputs["PredictorGroup"] = self.predictor.fleet.group.auto_scaling_group_name
            if settings.predictor.client_ranges:
                # What `holdfast verify` expects the predictors' security group to admit.
                outputs["PredictorClients"] = ",".join(settings.predictor.client_ranges)
        # cfn-lint's W6001 warns of outputs that pass on another stack's; operators read one stack, not three.
        self.add_metadata("cfn-lint", {"config": {"ignore_checks": ["W6001"]}})
        for name, value in outputs.items():
            CfnOutput(self, name, value=value)

    def _predictor(
        self, settings: Settings, foundation: ClusterFoundation, network: PrivateNetwork
    ) -> PredictorFleet | None:
        """Add the predictors, at zero, where the settings name a model to serve."""
        chosen = settings.predictor
        if chosen.job is None:
            return None
        names = ("port", "output", "digits", "top_k", "batch_rows", "rows_per_minute", "rows_per_day", "client_ca")
        return PredictorFleet(
            self,
            "Predictor",
            foundation=foundation,
            network=network,
            fleet=FleetProps(
                instance_type=chosen.instance_type,
                max_count=chosen.max,
                machine_image=_image(settings, gpu=False),
                dedicated=settings.cluster.dedicated_tenancy,
            ),
            predictions=Predictions(job_id=chosen.job, **{name: getattr(chosen, name) for name in names}),
            clients=PredictorClients(ranges=chosen.client_ranges),
        )


def _image(settings: Settings, *, gpu: bool) -> ec2.IMachineImage | None:
    return golden_image(settings.cluster.name, gpu=gpu) if settings.images.baked else None


def _fleet(settings: Settings, fleet: Scheduler | Fleet, max_count: int = 1) -> FleetProps:
    # Servers and the scheduler compute on CPUs, whatever their type has.
    gpu = fleet is settings.workers and has_gpu(fleet.instance_type)
    return FleetProps(
        instance_type=fleet.instance_type,
        max_count=max_count,
        gpu=gpu,
        machine_image=_image(settings, gpu=gpu),
        scratch_gib=fleet.scratch_gib if isinstance(fleet, Fleet) else 0,
        dedicated=settings.cluster.dedicated_tenancy,
    )
