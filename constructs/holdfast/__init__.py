"""Holdfast's construct library: distributed training in a private, encrypted, authenticated cluster.

    foundation = ClusterFoundation(stack, "Foundation", cluster_name="digits")
    network = PrivateNetwork(stack, "Network", cluster_name="digits", cidr="10.77.0.0/22",
                             access=foundation.node_access(), encryption_key=foundation.keys.data, …)
    TrainingCluster(stack, "Training", foundation=foundation, network=network,
                    scheduler=FleetProps(instance_type="m7i.large"), …)

Constructs take keyword arguments only, expose the AWS constructs that they hold, and keep keys, buckets and
checkpoints when a stack goes unless `removal_policy` says otherwise.
"""

from holdfast.access import NodeAccess, ServiceAccess
from holdfast.buckets import ClusterBuckets
from holdfast.bundle import LateWheelhouse, NodeBundle, Wheelhouse
from holdfast.enrolment import EnrolmentFunction
from holdfast.errors import AcknowledgementError, BundleError, KitError, PropertyError
from holdfast.findings import acknowledge, acknowledge_keys
from holdfast.foundation import ClusterFoundation
from holdfast.keys import AuthorityProps, ClusterKeys
from holdfast.network import PrivateNetwork
from holdfast.predictor import PredictorClients, PredictorFleet
from holdfast.remote_access import SessionAccess
from holdfast.training.checkpoints import CheckpointRetention, CheckpointStore
from holdfast.training.cluster import TrainingCluster
from holdfast.training.fleet import FleetProps, NodeFleet
from holdfast.training.golden_image import GoldenImage, golden_image, image_access
from holdfast.training.jobs import JobLimits, JobStateMachine

__all__ = [
    "AcknowledgementError",
    "AuthorityProps",
    "BundleError",
    "CheckpointRetention",
    "CheckpointStore",
    "ClusterBuckets",
    "ClusterFoundation",
    "ClusterKeys",
    "EnrolmentFunction",
    "FleetProps",
    "GoldenImage",
    "JobLimits",
    "JobStateMachine",
    "KitError",
    "LateWheelhouse",
    "NodeAccess",
    "NodeBundle",
    "NodeFleet",
    "PredictorClients",
    "PredictorFleet",
    "PrivateNetwork",
    "PropertyError",
    "ServiceAccess",
    "SessionAccess",
    "TrainingCluster",
    "Wheelhouse",
    "acknowledge",
    "acknowledge_keys",
    "golden_image",
    "image_access",
]
