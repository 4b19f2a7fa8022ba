"""A fleet: the role, launch template and Auto Scaling group of one node role."""

from collections.abc import Sequence
from dataclasses import dataclass

from aws_cdk import Duration, Stack, Tags
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge
from holdfast.names import CLUSTER_TAG, ClusterNames
from holdfast.network import PrivateNetwork
from holdfast_node.contract.roles import MAX_NODES_PER_ROLE, NodeRole

#: SSM public parameters, resolved by CloudFormation at each deployment: the image that was deployed is the image
#: that boots, until the next deployment.
LINUX_IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
GPU_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
_VOLUME_GIB = 30
_GPU_VOLUME_GIB = 150  # the GPU image alone needs 75
ROOT_DEVICE = "/dev/xvda"
#: The most of a gp3 volume (EBS user guide, "General Purpose SSD volumes").
_MAX_VOLUME_GIB = 16384
#: The name of the scratch volume; Amazon Linux 2023 links it to the NVMe device that it becomes (EC2 user guide,
#: "Map block devices for NVMe volumes": the link's name is in the device's vendor data).
SCRATCH_DEVICE = "/dev/sdb"


def base_image(*, gpu: bool) -> str:
    """Return the SSM parameter of the image that nodes with or without a GPU start from."""
    return GPU_IMAGE if gpu else LINUX_IMAGE


def root_volume_gib(*, gpu: bool) -> int:
    """Return how large a node's root volume is unless its fleet says otherwise, in GiB."""
    return _GPU_VOLUME_GIB if gpu else _VOLUME_GIB


@dataclass(frozen=True, kw_only=True)
class FleetProps:
    """What one role's instances are.

    `max_count` is the most that one job may have. `machine_image` defaults to Amazon Linux 2023, with NVIDIA's
    driver if `gpu`; `golden_image` names one that has installed already. `volume_gib` defaults to 30 GiB, or 150 GiB
    if `gpu`. `scratch_gib` is the size of a blank volume for the trainer's work directory; default: 0, and the
    directory is on the root volume. With `dedicated`, instances run on hardware that no other account's instances
    share; default: they do not ask for it. With `gpu` they install MXNet's CUDA build instead of the one for CPUs.
    """

    instance_type: str
    max_count: int = 1
    gpu: bool = False
    machine_image: ec2.IMachineImage | None = None
    volume_gib: int | None = None
    scratch_gib: int = 0
    dedicated: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.scratch_gib <= _MAX_VOLUME_GIB:
            raise PropertyError(
                f"scratch_gib must be between 0 and {_MAX_VOLUME_GIB}, got {self.scratch_gib}; 0 leaves scratch files "
                "on the root volume"
            )
        if not 1 <= self.max_count <= MAX_NODES_PER_ROLE:
            raise PropertyError(
                f"max_count must be between 1 and {MAX_NODES_PER_ROLE}, got {self.max_count}; "
                "the overlay has no more addresses for a role"
            )

    @property
    def scratch_device(self) -> str:
        """Where a node finds its scratch volume, as its configuration says it; empty if it has none."""
        return SCRATCH_DEVICE if self.scratch_gib else ""

    @property
    def image(self) -> ec2.IMachineImage:
        """The image that instances boot."""
        if self.machine_image is not None:
            return self.machine_image
        return ec2.MachineImage.from_ssm_parameter(base_image(gpu=self.gpu), os=ec2.OperatingSystemType.LINUX)


class NodeFleet(Construct):
    """The instances of one role: none at rest, up to a limit while a job runs.

    They answer metadata requests only with a token and over one hop, have no key pair and no public address, and
    their volumes are encrypted with the cluster's key and go when they go.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        role: NodeRole,
        props: FleetProps,
        network: PrivateNetwork,
        security_group: ec2.ISecurityGroup,
        encryption_key: kms.IKey,
        statements: Sequence[iam.PolicyStatement],
        user_data: str,
    ) -> None:
        """Make the fleet.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: the cluster that it is part of.
            role: the role that its instances play.
            props: instance type, limit and image.
            network: where instances start, in either zone.
            security_group: the only group that instances carry.
            encryption_key: encrypts their volumes.
            statements: all that instances may do on AWS.
            user_data: the script that they start with.
        """
        super().__init__(scope, construct_id)
        stack = Stack.of(self)
        names = ClusterNames(cluster_name)
        self.role = iam.Role(
            self,
            "Role",
            # The enrolment function admits this name; only EC2 can take the role.
            role_name=names.role(role, stack),
            description=f"Holdfast {cluster_name}: a {role} node",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        )
        self.policy = iam.ManagedPolicy(
            self,
            "Policy",
            description=f"Holdfast {cluster_name}: what a {role} node does",
            roles=[self.role],
            statements=list(statements),
        )
        self.instance_profile = iam.InstanceProfile(self, "Profile", role=self.role)
        self.launch_template = ec2.LaunchTemplate(
            self,
            "Template",
            launch_template_name=names.group(role),
            instance_type=ec2.InstanceType(props.instance_type),
            machine_image=props.image,
            instance_profile=self.instance_profile,
            security_group=security_group,
            user_data=ec2.UserData.custom(user_data),
            associate_public_ip_address=False,
            require_imdsv2=True,
            http_endpoint=True,
            http_put_response_hop_limit=1,
            instance_metadata_tags=False,
            detailed_monitoring=True,
            ebs_optimized=True,
            instance_initiated_shutdown_behavior=ec2.InstanceInitiatedShutdownBehavior.TERMINATE,
            block_devices=[
                _volume(ROOT_DEVICE, props.volume_gib or root_volume_gib(gpu=props.gpu), encryption_key),
                *([_volume(SCRATCH_DEVICE, props.scratch_gib, encryption_key)] if props.scratch_gib else []),
            ],
        )
        if props.dedicated:
            template = self.launch_template.node.default_child
            assert isinstance(template, ec2.CfnLaunchTemplate)
            template.add_property_override("LaunchTemplateData.Placement", {"Tenancy": "dedicated"})
        Tags.of(self).add("Name", names.group(role))
        Tags.of(self).add(CLUSTER_TAG, cluster_name)
        self.group = autoscaling.AutoScalingGroup(
            self,
            "Group",
            auto_scaling_group_name=names.group(role),
            vpc=network.vpc,
            vpc_subnets=network.subnets,
            launch_template=self.launch_template,
            # No desired capacity: a deployment during a job leaves the job's instances alone.
            min_capacity=0,
            max_capacity=props.max_count,
            cooldown=Duration.minutes(1),
            group_metrics=[autoscaling.GroupMetrics.all()],
        )
        depend(self.group, self.policy)
        acknowledge(
            self.group,
            "AwsSolutions-AS3",
            reason="Groups grow and shrink with every job; their own history and CloudTrail hold each change.",
        )
        self.connections = ec2.Connections(security_groups=[security_group])


def _volume(device: str, gib: int, key: kms.IKey) -> ec2.BlockDevice:
    """Return a volume that is encrypted with the cluster's key and goes with its instance."""
    return ec2.BlockDevice(
        device_name=device,
        volume=ec2.BlockDeviceVolume.ebs(
            gib,
            encrypted=True,
            kms_key=key,
            volume_type=ec2.EbsDeviceVolumeType.GP3,
            delete_on_termination=True,
        ),
    )
