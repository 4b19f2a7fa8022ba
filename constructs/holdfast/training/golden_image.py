"""A golden image: what nodes install at their first boot, baked beforehand by EC2 Image Builder."""

import hashlib
import json
import re
from pathlib import Path

from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_imagebuilder as imagebuilder
from aws_cdk import aws_logs as logs
from constructs import Construct

from holdfast.access import AGENT_CHANNELS, NodeAccess, ServiceAccess, agent_services
from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.findings import acknowledge, written
from holdfast.foundation import ClusterFoundation
from holdfast.names import ClusterNames
from holdfast.network import PrivateNetwork
from holdfast.security_groups import closed_security_group
from holdfast.training.fleet import ROOT_DEVICE, base_image, root_volume_gib

#: AWS's own buckets that a build reads without credentials: the program that runs components, and its set-up scripts
#: (EC2 Image Builder user guide, "Image Builder and interface VPC endpoints").
_BUILDER_BUCKETS = ("ec2imagebuilder-toe-{region}-prod", "ec2imagebuilder-managed-resources-{region}-prod")
#: A component and a recipe never change; another content is another one, by its name.
_VERSION = "1.0.0"
#: The most characters of a component's document (Image Builder API, CreateComponent).
_MAX_DOCUMENT = 16_000
_BAKE_SECONDS = 1800
_TEST_MINUTES = 60
_SCRIPT = Path(__file__).with_suffix(".sh")
_CONSTANT = re.compile(r"@([A-Z0-9_]+)@")
#: What an instance of the image is asked before the image is given out.
_TEST = """\
set -eu
[ "$(cat /opt/holdfast/venv/lock.sha256)" = @LOCK_SHA256@ ]
/opt/holdfast/venv/bin/python -I -c 'import boto3, cryptography, mxnet'
"""


def golden_image(cluster_name: str, *, gpu: bool = False) -> ec2.IMachineImage:
    """Return the image that a cluster's `GoldenImage` has baked last, as CloudFormation finds it at each deployment.

    A deployment fails, and changes nothing, if the pipeline has never baked one.
    """
    name = ClusterNames(cluster_name).image_parameter(_variant(gpu=gpu))
    return ec2.MachineImage.from_ssm_parameter(name, os=ec2.OperatingSystemType.LINUX)


def image_access(foundation: ClusterFoundation) -> NodeAccess:
    """Return what instances that become images call: the network of `GoldenImage` makes its endpoints from it.

    It is another network than the nodes', which reach neither Image Builder nor Systems Manager.
    """
    stack, services = Stack.of(foundation), ec2.InterfaceVpcEndpointAwsService
    names, region = foundation.names, stack.region
    components = stack.format_arn(
        service="imagebuilder", resource="component", resource_name=f"{names.cluster}-*/{_VERSION}/*"
    )
    group = f"arn:{stack.partition}:logs:{region}:{stack.account}:log-group:{names.image_log_group('*')}"
    published = [*foundation.code_arns(), *(foundation.code_arns(gpu=True) if foundation.gpu_wheelhouse else ())]
    return NodeAccess(
        services=(
            *agent_services(_instances(stack)),
            ServiceAccess(
                name="ImageBuilder",
                service=services.IMAGE_BUILDER,
                actions=("imagebuilder:GetComponent",),
                resources=(components,),
            ),
            ServiceAccess(
                name="Logs",
                service=services.CLOUDWATCH_LOGS,
                actions=("logs:CreateLogStream", "logs:PutLogEvents"),
                resources=(group,),
            ),
        ),
        objects=(
            iam.PolicyStatement(sid="NodeBundle", actions=["s3:GetObject"], resources=list(dict.fromkeys(published))),
        ),
        public=tuple(f"arn:{stack.partition}:s3:::{name.format(region=region)}/*" for name in _BUILDER_BUCKETS),
    )


class GoldenImage(Construct):
    """A pipeline that bakes the packages and the Python environment of nodes into an image, whenever it is started.

    It has no schedule: `aws imagebuilder start-image-pipeline-execution` starts it. An instance without a public
    address or a way to the internet checks the node bundle and the wheels by their SHA-256, runs the bundle's
    `install.sh --bake`, and becomes an image that is encrypted with the cluster's key; a second instance boots it and
    looks whether it has what it should. The image's id goes to the SSM parameter that `golden_image` reads.

    A node that boots from it still fetches and checks its bundle, and installs as before if the bundle's lock is
    another than the image's: a stale image costs time and nothing else. Images and their snapshots stay until somebody
    deregisters them, also when the stack goes.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        foundation: ClusterFoundation,
        network: PrivateNetwork,
        instance_type: str = "m7i.large",
        gpu: bool = False,
    ) -> None:
        """Make the pipeline.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            foundation: the cluster's key, node bundle and wheels.
            network: where instances bake; one that was made with `image_access`.
            instance_type: what they are. Default: m7i.large; baking computes nothing on a GPU.
            gpu: whether the image is for workers with NVIDIA GPUs. Default: for nodes that compute on CPUs.

        Raises:
            PropertyError: the bundle is for local hosts only, or `gpu` is asked of a foundation without it.
        """
        super().__init__(scope, construct_id)
        self.variant = _variant(gpu=gpu)
        self.parameter_name = foundation.names.image_parameter(self.variant)
        name = f"{foundation.cluster_name}-{self.variant}"
        document, digest = _document(foundation, gpu=gpu)
        self.security_group = closed_security_group(
            self, "SecurityGroup", vpc=network.vpc, description=f"Holdfast {foundation.cluster_name}: baking {name}"
        )
        network.allow_services(self, "", source=self.security_group, who="baking instances")
        self.component = imagebuilder.CfnComponent(
            self,
            "Component",
            name=f"{name}-{digest}",
            version=_VERSION,
            platform="Linux",
            description=f"Holdfast {foundation.cluster_name}: packages and Python environment of nodes",
            data=document,
        )
        build_log = self._log("BuildLog", self.variant, foundation)
        pipeline_log = self._log("PipelineLog", f"{self.variant}-pipeline", foundation)
        self.recipe = self._recipe(f"{name}-{digest}", foundation, gpu=gpu)
        self.pipeline = imagebuilder.CfnImagePipeline(
            self,
            "Pipeline",
            name=name,
            description=f"Holdfast {foundation.cluster_name}: the image that {self.variant} boot",
            image_recipe_arn=self.recipe.attr_arn,
            infrastructure_configuration_arn=self._infrastructure(
                name, foundation, network, instance_type, build_log, gpu=gpu
            ).attr_arn,
            distribution_configuration_arn=self._distribution(name, foundation).attr_arn,
            # It would have the instance report its whole inventory.
            enhanced_image_metadata_enabled=False,
            image_tests_configuration=imagebuilder.CfnImagePipeline.ImageTestsConfigurationProperty(
                image_tests_enabled=True, timeout_minutes=_TEST_MINUTES
            ),
            logging_configuration=imagebuilder.CfnImagePipeline.PipelineLoggingConfigurationProperty(
                image_log_group_name=build_log.log_group_name, pipeline_log_group_name=pipeline_log.log_group_name
            ),
            status="ENABLED",
        )

    def _log(self, construct_id: str, subject: str, foundation: ClusterFoundation) -> logs.LogGroup:
        """Return a log group that goes with the pipeline: the next one's has its name."""
        return logs.LogGroup(
            self,
            construct_id,
            log_group_name=foundation.names.image_log_group(subject),
            encryption_key=foundation.keys.data,
            retention=foundation.log_retention,
            removal_policy=RemovalPolicy.DESTROY,
        )

    def _recipe(self, name: str, foundation: ClusterFoundation, *, gpu: bool) -> imagebuilder.CfnImageRecipe:
        recipe = imagebuilder.CfnImageRecipe
        return recipe(
            self,
            "Recipe",
            name=name,
            version=_VERSION,
            parent_image=f"ssm:{base_image(gpu=gpu)}",
            components=[recipe.ComponentConfigurationProperty(component_arn=self.component.attr_arn)],
            block_device_mappings=[
                recipe.InstanceBlockDeviceMappingProperty(
                    device_name=ROOT_DEVICE,
                    ebs=recipe.EbsInstanceBlockDeviceSpecificationProperty(
                        encrypted=True,
                        kms_key_id=foundation.keys.data.key_arn,
                        volume_size=root_volume_gib(gpu=gpu),
                        volume_type="gp3",
                        delete_on_termination=True,
                    ),
                )
            ],
        )

    def _distribution(self, name: str, foundation: ClusterFoundation) -> imagebuilder.CfnDistributionConfiguration:
        distribution = imagebuilder.CfnDistributionConfiguration
        return distribution(
            self,
            "Distribution",
            name=name,
            distributions=[
                distribution.DistributionProperty(
                    region=Stack.of(self).region,
                    ami_distribution_configuration={
                        "Name": f"holdfast-{name}-{{{{ imagebuilder:buildDate }}}}",
                        "Description": f"Holdfast {foundation.cluster_name}: {self.variant}",
                        "KmsKeyId": foundation.keys.data.key_arn,
                    },
                    ssm_parameter_configurations=[
                        distribution.SsmParameterConfigurationProperty(
                            parameter_name=self.parameter_name, data_type="aws:ec2:image"
                        )
                    ],
                )
            ],
        )

    def _infrastructure(
        self,
        name: str,
        foundation: ClusterFoundation,
        network: PrivateNetwork,
        instance_type: str,
        build_log: logs.LogGroup,
        *,
        gpu: bool,
    ) -> imagebuilder.CfnInfrastructureConfiguration:
        stack = Stack.of(self)
        #: What an instance that becomes an image may do: carry out one component, fetch what it bakes, and log.
        self.role = iam.Role(
            self,
            "Role",
            description=f"Holdfast {foundation.cluster_name}: an instance that becomes an image",
            assumed_by=iam.ServicePrincipal("ec2.amazonaws.com"),
        )
        self.policy = iam.ManagedPolicy(
            self,
            "Policy",
            description=f"Holdfast {foundation.cluster_name}: what an instance does that becomes an image",
            roles=[self.role],
            statements=[
                iam.PolicyStatement(
                    sid="FetchBundle", actions=["s3:GetObject"], resources=foundation.code_arns(gpu=gpu)
                ),
                iam.PolicyStatement(
                    sid="ReadComponent", actions=["imagebuilder:GetComponent"], resources=[self.component.attr_arn]
                ),
                # Image Builder's commands come over Systems Manager.
                iam.PolicyStatement(sid="TakeCommands", actions=list(AGENT_CHANNELS), resources=["*"]),
                iam.PolicyStatement(
                    sid="ReportAgent", actions=["ssm:UpdateInstanceInformation"], resources=[_instances(stack)]
                ),
                iam.PolicyStatement(
                    sid="WriteLog",
                    actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                    resources=[build_log.log_group_arn],
                ),
            ],
        )
        for arn, reason in (
            ("*", "The message gateway's actions know no resource; the endpoint's policy holds the account."),
            (written(stack, _instances(stack)), "An instance reports itself; its id is not known at deployment."),
        ):
            acknowledge(self.policy, f"AwsSolutions-IAM5[Resource::{arn}]", reason=reason)
        profile = iam.InstanceProfile(self, "Profile", role=self.role)
        infrastructure = imagebuilder.CfnInfrastructureConfiguration(
            self,
            "Infrastructure",
            name=name,
            instance_profile_name=profile.instance_profile_name,
            instance_types=[instance_type],
            instance_metadata_options=imagebuilder.CfnInfrastructureConfiguration.InstanceMetadataOptionsProperty(
                http_tokens="required", http_put_response_hop_limit=1
            ),
            subnet_id=network.vpc.select_subnets(subnet_group_name=network.subnets.subnet_group_name).subnet_ids[0],
            security_group_ids=[self.security_group.security_group_id],
            terminate_instance_on_failure=True,
        )
        depend(infrastructure, self.policy)
        return infrastructure


def _variant(*, gpu: bool) -> str:
    return "gpu-nodes" if gpu else "nodes"


def _instances(stack: Stack) -> str:
    return stack.format_arn(service="ec2", resource="instance", resource_name="*")


def _document(foundation: ClusterFoundation, *, gpu: bool) -> tuple[str, str]:
    """Return the component that bakes, as JSON, which is YAML too, and the start of a digest of what it says."""
    wheels = foundation.wheels(gpu=gpu)
    if wheels is None:
        raise PropertyError("a golden image needs a node bundle with install.sh, got one that is for local hosts only")
    bundle, house = foundation.bundle.document, wheels.document
    constants = {
        "REGION": Stack.of(foundation).region,
        "BUNDLE_BUCKET": bundle.bucket,
        "BUNDLE_KEY": bundle.key,
        "BUNDLE_SHA256": bundle.sha256,
        "WHEELS_BUCKET": house.bucket,
        "WHEELS_KEY": house.key,
        "WHEELS_SHA256": house.sha256,
        "LOCK": house.lock,
        "LOCK_SHA256": hashlib.sha256((foundation.bundle.source / house.lock).read_bytes()).hexdigest(),
    }

    def step(name: str, script: str) -> dict[str, object]:
        command = _CONSTANT.sub(lambda found: constants[found[1]], script)
        return {
            "name": name,
            "action": "ExecuteBash",
            "timeoutSeconds": _BAKE_SECONDS,
            "inputs": {"commands": [command]},
        }

    scripts = {"build": ("Bake", _SCRIPT.read_text()), "test": ("Look", _TEST)}
    phases = [{"name": phase, "steps": [step(*what)]} for phase, what in scripts.items()]
    document = json.dumps({"name": "holdfast-bake", "schemaVersion": 1.0, "phases": phases})
    if len(document) > _MAX_DOCUMENT:
        raise PropertyError(f"a component must be at most {_MAX_DOCUMENT} characters, got {len(document)}")
    # Tokens in the text are numbered anew by each synthesis: what they stand for is in the other parts of this.
    said = (*(text for _, text in scripts.values()), bundle.sha256, house.sha256, base_image(gpu=gpu))
    return document, hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
