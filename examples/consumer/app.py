"""Another team's CDK app: Holdfast's constructs in a stack of its own, with its own names and an own operator role.

Run it from this directory: `cdk synth --app "python app.py"`.
"""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam

from holdfast import ClusterFoundation, FleetProps, JobLimits, PrivateNetwork, TrainingCluster

app = cdk.App()
stack = cdk.Stack(app, "Vision", env=cdk.Environment(region="eu-west-1"))

foundation = ClusterFoundation(stack, "Foundation", cluster_name="vision", gpu=True)
network = PrivateNetwork(
    stack,
    "Network",
    cluster_name="vision",
    cidr="10.60.0.0/22",
    access=foundation.node_access(),
    # aws ec2 describe-managed-prefix-lists --filters Name=prefix-list-name,Values=com.amazonaws.eu-west-1.s3
    s3_prefix_list_id="pl-6da54004",
    encryption_key=foundation.keys.data,
)
cluster = TrainingCluster(
    stack,
    "Training",
    foundation=foundation,
    network=network,
    scheduler=FleetProps(instance_type="m7i.large"),
    servers=FleetProps(instance_type="m7i.xlarge", max_count=2),
    workers=FleetProps(instance_type="g5.2xlarge", max_count=4, gpu=True),
    limits=JobLimits(max_seconds=8 * 3600),
)

operator = iam.Role(stack, "Operator", assumed_by=iam.AccountRootPrincipal())
cluster.grant_submit(operator)

app.synth()
