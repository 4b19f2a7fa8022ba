"""Mutants of the network: more ways in and out."""

from tests.mutants.edits import Edit, Mutant, Ref, add, drop, give, like, new, put

_INGRESS = "AWS::EC2::SecurityGroupIngress"
_WORKERS = like("ClusterWorkerToServerIn", "SourceSecurityGroupId")
_PORT = {"IpProtocol": "tcp", "FromPort": 9093, "ToPort": 9093}
_ANYWHERE = {"CidrIp": "0.0.0.0/0", "IpProtocol": "-1"}
_S3, _KMS = ("NetworkVpcS3", "PolicyDocument", "Statement"), ("NetworkKms", "PolicyDocument", "Statement")
_RULES = ("NetworkNameRules", "FirewallRules")


def _training(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Training", what, edit)


def _network(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Network", what, edit)


MUTANTS = (
    _training(
        "open-ingress",
        "the internet may dial the workers",
        new(_INGRESS, GroupId=_WORKERS, CidrIp="0.0.0.0/0", **_PORT),
    ),
    _training("open-ingress-ipv6", "the IPv6 internet may", new(_INGRESS, GroupId=_WORKERS, CidrIpv6="::/0", **_PORT)),
    _training(
        "ssh-ingress",
        "workers admit SSH from a private range",
        give(
            "ClusterWorkerGroup",
            "SecurityGroupIngress",
            to=[{"CidrIp": "10.0.0.0/8", "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}],
        ),
    ),
    _training(
        "open-egress", "servers may dial anybody", put("ClusterServerGroup", "SecurityGroupEgress", 0, to=_ANYWHERE)
    ),
    _training("default-egress", "the placeholder goes", drop("ClusterServerGroup", "SecurityGroupEgress")),
    _training(
        "other-prefix-list",
        "workers may dial CloudFront",
        put("ClusterWorkerToS3Out", "DestinationPrefixListId", to="pl-3b927c52"),
    ),
    _training("all-protocols", "a rule opens all protocols", put("ClusterWorkerToServerIn", "IpProtocol", to="-1")),
    _training("port-range", "a rule opens a range", put("ClusterWorkerToServerIn", "FromPort", to=1024)),
    _training(
        "worker-to-worker", "workers may dial each other", put("ClusterWorkerToServerIn", "GroupId", to=_WORKERS)
    ),
    Mutant(
        "public-predictor",
        "Training",
        "the internet may dial the predictor",
        put("PredictorFrom1010016", "CidrIp", to="0.0.0.0/0"),
        of="full",
    ),
    _network(
        "public-subnet",
        "instances get public addresses",
        put("NetworkVpcNodesSubnet1Subnet", "MapPublicIpOnLaunch", to=True),
    ),
    _network("internet-gateway", "the VPC has an internet gateway", new("AWS::EC2::InternetGateway")),
    _network(
        "public-subnet-route",
        "a subnet has a route to a gateway",
        new(
            "AWS::EC2::Route",
            RouteTableId=Ref("NetworkVpcNodesSubnet1RouteTable"),
            DestinationCidrBlock="0.0.0.0/0",
            GatewayId="igw-0123456789abcdef0",
        ),
    ),
    _network(
        "nat-gateway",
        "the VPC has a NAT gateway",
        new("AWS::EC2::NatGateway", SubnetId=Ref("NetworkVpcNodesSubnet1Subnet"), ConnectivityType="private"),
    ),
    _network(
        "peered-network",
        "the VPC is peered with another",
        new("AWS::EC2::VPCPeeringConnection", VpcId=Ref("NetworkVpc"), PeerVpcId="vpc-0123456789abcdef0"),
    ),
    _network("endpoint-without-policy", "an endpoint lets everything through", drop("NetworkKms", "PolicyDocument")),
    _network(
        "endpoint-any-action", "S3's endpoint lets any action through", put(*_S3, "JobObjects", "Action", to="s3:*")
    ),
    _network(
        "endpoint-any-resource", "S3's endpoint leads to any bucket", put(*_S3, "ModelObjects", "Resource", to="*")
    ),
    _network(
        "endpoint-foreign-bucket",
        "S3's endpoint leads to somebody's bucket",
        put(*_S3, "ModelObjects", "Resource", to="arn:aws:s3:::somebody-elses/*"),
    ),
    _network(
        "endpoint-to-stranger",
        "an endpoint leads to somebody's service",
        put("NetworkKms", "ServiceName", to="com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"),
    ),
    _network("endpoint-any-account", "an endpoint serves any account", drop(*_KMS, "Nodes", "Condition")),
    _network(
        "endpoint-public-read",
        "anybody's objects are read through S3's endpoint",
        put(*_S3, "OperatingSystemPackages", "Resource", to="arn:aws:s3:::al2023-repos-somebody-elses/*"),
    ),
    _network(
        "endpoint-public-write",
        "anybody may write through S3's endpoint",
        put(*_S3, "OperatingSystemPackages", "Action", to="s3:PutObject"),
    ),
    _network(
        "endpoint-default-group", "an endpoint is in the VPC's default group", drop("NetworkKms", "SecurityGroupIds")
    ),
    _network(
        "endpoint-public-name", "a name leads past the endpoint", put("NetworkKms", "PrivateDnsEnabled", to=False)
    ),
    _network("names-not-blocked", "other names are let through", put(*_RULES, 1, "Action", to="ALERT")),
    _network("name-firewall-detached", "no DNS firewall is on the VPC", drop("NetworkNameFirewall")),
    _network(
        "names-of-all-of-aws",
        "every name of AWS's is allowed",
        add("NetworkAllowedNames", "Domains", item={"Fn::Join": ["", ["*.", {"Ref": "AWS::URLSuffix"}]]}),
    ),
    _network(
        "names-of-strangers", "a stranger's name is allowed", add("NetworkAllowedNames", "Domains", item="example.com")
    ),
    _network(
        "names-of-all-of-a-region",
        "every name of AWS's in the region is allowed",
        add("NetworkAllowedNames", "Domains", item={"Fn::Join": ["", ["*.us-east-1.", {"Ref": "AWS::URLSuffix"}]]}),
    ),
    _network(
        "names-of-another-list",
        "names on somebody's list are allowed",
        put(*_RULES, 0, "FirewallDomainListId", to="rslvr-fdl-0123456789abcdef"),
    ),
    _network("no-flow-log", "flows are not logged", drop("NetworkFlows")),
    _network("flow-log-of-rejects", "accepted flows are not logged", put("NetworkFlows", "TrafficType", to="REJECT")),
)
