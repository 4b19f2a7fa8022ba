"""The network stack."""

from constructs import Construct

from holdfast import ClusterFoundation, PrivateNetwork
from stacks.base import ClusterStack
from stacks.settings import Settings


class NetworkStack(ClusterStack):
    """The private network and its endpoints: what costs money at rest."""

    def __init__(self, scope: Construct, *, settings: Settings, foundation: ClusterFoundation) -> None:
        super().__init__(scope, "Network", settings=settings, description="private network and endpoints")
        self.network = PrivateNetwork(
            self,
            "Network",
            cluster_name=settings.cluster.name,
            cidr=settings.network.cidr,
            access=foundation.node_access(),
            s3_prefix_list_id=settings.network.s3_prefix_list,
            encryption_key=foundation.keys.data,
            log_retention=self.log_retention,
            removal_policy=self.data_removal,
        )
