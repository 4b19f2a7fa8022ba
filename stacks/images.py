"""The images stack: what bakes the images that nodes boot; deployed to bake, and destroyed again."""

from aws_cdk import CfnOutput, RemovalPolicy
from constructs import Construct

from holdfast import ClusterFoundation, GoldenImage, PrivateNetwork, image_access
from stacks.base import ClusterStack
from stacks.instances import has_gpu
from stacks.settings import Settings

#: Two subnets of 32 addresses; nothing else is in this network, and it is connected to none.
_CIDR = "10.255.255.0/26"


class ImagesStack(ClusterStack):
    """Image pipelines with a private network of their own, whose endpoints cost money while the stack is there."""

    def __init__(self, scope: Construct, *, settings: Settings, foundation: ClusterFoundation) -> None:
        super().__init__(scope, "Images", settings=settings, description="bakes the images that nodes boot")
        # It holds nothing that is missed: it comes to bake and goes again, with its logs, whose names it uses anew.
        self.termination_protection = False
        self.network = PrivateNetwork(
            self,
            "Network",
            cluster_name=settings.cluster.name,
            cidr=_CIDR,
            access=image_access(foundation),
            s3_prefix_list_id=settings.network.s3_prefix_list,
            encryption_key=foundation.keys.data,
            purpose="images",
            log_retention=self.log_retention,
            removal_policy=RemovalPolicy.DESTROY,
        )
        kinds = {"Nodes": False} | ({"GpuNodes": True} if has_gpu(settings.workers.instance_type) else {})
        for name, gpu in kinds.items():
            image = GoldenImage(self, name, foundation=foundation, network=self.network, gpu=gpu)
            CfnOutput(self, f"{name}Pipeline", value=image.pipeline.attr_arn, description="start it to bake an image")
            CfnOutput(self, f"{name}Image", value=image.parameter_name, description="holds the last image's id")
