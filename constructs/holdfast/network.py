"""The private network: two isolated subnets, and no way out but to the AWS services that nodes call."""

import re

from aws_cdk import RemovalPolicy, Stack, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_route53resolver as route53resolver
from constructs import Construct

from holdfast.access import NodeAccess, ServiceAccess
from holdfast.dependencies import depend
from holdfast.errors import PropertyError
from holdfast.names import ClusterNames
from holdfast.security_groups import HTTPS, allow_between, allow_s3, closed_security_group

AVAILABILITY_ZONES = 2
_PREFIX_LIST = re.compile(r"pl-[0-9a-f]{8,17}")
#: Buckets of Amazon Linux 2023's package repositories, one per region (Amazon Linux 2023 user guide, "Access the
#: repositories through a VPC endpoint").
_PACKAGE_REPOSITORY = "al2023-repos-{region}-de612dc2"
#: Where SDKs still call S3 by its oldest name (Amazon S3 User Guide, "Legacy endpoints").
_GLOBAL_S3_REGION = "us-east-1"
#: Rule groups of a VPC are asked in order of their priority, 101 to 8999; the ends are others' to take.
_FIREWALL_PRIORITY = 1000


class PrivateNetwork(Construct):
    """A VPC with an isolated subnet in each of two zones, endpoints for what nodes call, a DNS firewall, and flow logs.

    No internet gateway, no NAT, no public address. Each interface endpoint and the S3 gateway carry a policy that
    admits this account's principals, the actions that nodes use and the resources they use them on.

    Names are a way out too: the VPC's resolver asks the internet's name servers for whoever asks it, past every
    security group. So DNS Firewall lets the names of these endpoints and of the region's file systems through, and
    answers that no other name exists. It fails closed, which is AWS's default for a VPC (Route 53 Developer Guide,
    "DNS Firewall VPC configuration").

    The VPC's default security group is left as AWS makes it: no network interface here carries it, and closing it
    would take a custom resource, a function with power over security groups.

    In a stack with a concrete account, CDK looks up its zones' names unless `Stack.availability_zones` is
    overridden; in an account-agnostic stack nothing is looked up.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster_name: str,
        cidr: str,
        access: NodeAccess,
        s3_prefix_list_id: str,
        encryption_key: kms.IKey,
        purpose: str = "",
        log_retention: logs.RetentionDays = logs.RetentionDays.ONE_YEAR,
        removal_policy: RemovalPolicy = RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
    ) -> None:
        """Make the network.

        Args:
            scope: the construct's parent.
            construct_id: the construct's id.
            cluster_name: the cluster that lives in it.
            cidr: its IPv4 range, halved between the two zones.
            access: what nodes call; see `ClusterFoundation.node_access`.
            s3_prefix_list_id: the region's prefix list of S3 (`pl-…`), the only public range that rules may name.
                `aws ec2 describe-managed-prefix-lists --filters Name=prefix-list-name,Values=com.amazonaws.REGION.s3`
                prints it; a wrong one fails the deployment.
            encryption_key: encrypts the flow log.
            purpose: what tells the names of a cluster's second network from the first's. Default: the first's names.
            log_retention: how long flow logs are kept. Default: one year.
            removal_policy: what happens to the flow log. Default: kept, unless its creation failed.

        Raises:
            PropertyError: the prefix list's id is not one.
        """
        super().__init__(scope, construct_id)
        if not _PREFIX_LIST.fullmatch(s3_prefix_list_id):
            raise PropertyError(
                f"s3_prefix_list_id must look like pl-63a5400a, got {s3_prefix_list_id!r}; "
                "aws ec2 describe-managed-prefix-lists prints the region's"
            )
        self.s3_prefix_list_id = s3_prefix_list_id
        self._purpose = purpose
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(cidr),
            max_azs=AVAILABILITY_ZONES,
            nat_gateways=0,
            create_internet_gateway=False,
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Nodes",
                    subnet_type=ec2.SubnetType.PRIVATE_ISOLATED,
                    cidr_mask=int(cidr.rsplit("/", 1)[1]) + 1,
                )
            ],
        )
        self.subnets = ec2.SubnetSelection(subnet_group_name="Nodes")
        self._log_flows(ClusterNames(cluster_name), encryption_key, log_retention, removal_policy)

        self.endpoint_security_group = closed_security_group(
            self, "EndpointGroup", vpc=self.vpc, description=f"Holdfast {cluster_name}: interface endpoints"
        )
        #: The endpoints' connections: port 443, from whoever a consumer lets in.
        self.connections = ec2.Connections(
            security_groups=[self.endpoint_security_group], default_port=ec2.Port.tcp(HTTPS)
        )
        self.endpoints = {service.name: self._endpoint(service) for service in access.services}
        self.s3_endpoint = self.vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        self._allow_objects(access)
        self._allow_names(ClusterNames(cluster_name), access)

    def allow_services(self, scope: Construct, name: str, *, source: ec2.ISecurityGroup, who: str) -> None:
        """Let `source` reach the interface endpoints and S3: rules in `scope`, whose ids begin with `name`."""
        allow_between(
            scope,
            f"{name}ToEndpoints",
            source=source,
            target=self.endpoint_security_group,
            port=HTTPS,
            description=f"{who} to interface endpoints",
        )
        allow_s3(
            scope,
            f"{name}ToS3",
            source=source,
            prefix_list_id=self.s3_prefix_list_id,
            description=f"{who} to the S3 gateway endpoint",
        )

    def _own_account(self) -> dict[str, dict[str, str]]:
        return {"StringEquals": {"aws:PrincipalAccount": Stack.of(self).account}}

    def _endpoint(self, access: ServiceAccess) -> ec2.InterfaceVpcEndpoint:
        endpoint = ec2.InterfaceVpcEndpoint(
            self,
            access.name,
            vpc=self.vpc,
            service=access.service,
            subnets=self.subnets,
            security_groups=[self.endpoint_security_group],
            private_dns_enabled=True,
            open=False,
        )
        endpoint.add_to_policy(
            iam.PolicyStatement(
                sid="Nodes",
                principals=[iam.AnyPrincipal()],
                actions=list(access.actions),
                resources=list(access.resources),
                conditions=self._own_account(),
            )
        )
        for statement in access.also:
            endpoint.add_to_policy(statement.copy(principals=[iam.AnyPrincipal()], conditions=self._own_account()))
        return endpoint

    def _allow_objects(self, access: NodeAccess) -> None:
        for statement in access.objects:
            self.s3_endpoint.add_to_policy(
                statement.copy(principals=[iam.AnyPrincipal()], conditions=self._own_account())
            )
        stack = Stack.of(self)
        if access.public:
            self.s3_endpoint.add_to_policy(
                iam.PolicyStatement(
                    sid="PublicObjects",
                    principals=[iam.AnyPrincipal()],
                    actions=["s3:GetObject"],
                    resources=list(access.public),
                )
            )
        repository = _PACKAGE_REPOSITORY.format(region=stack.region)
        self.s3_endpoint.add_to_policy(
            iam.PolicyStatement(
                # dnf sends no credentials, so no condition on the principal can hold; the packages are public.
                sid="OperatingSystemPackages",
                principals=[iam.AnyPrincipal()],
                actions=["s3:GetObject"],
                resources=[f"arn:{stack.partition}:s3:::{repository}/*"],
            )
        )

    def _allow_names(self, names: ClusterNames, access: NodeAccess) -> None:
        stack = Stack.of(self)
        own = f"{stack.region}.{stack.url_suffix}"
        services = [f"{service.service.short_name}.{own}" for service in access.services]
        buckets = [f"s3.{own}", f"s3.dualstack.{own}"]  # the second is what dnf uses
        if Token.is_unresolved(stack.region) or stack.region == _GLOBAL_S3_REGION:
            buckets.append(f"s3.{stack.url_suffix}")
        domains = [*services, *buckets, *(f"*.{name}" for name in buckets), f"*.efs.{own}"]
        prefix = "-".join(filter(None, (names.cluster, self._purpose)))
        allowed = route53resolver.CfnFirewallDomainList(self, "AllowedNames", name=f"{prefix}-allowed", domains=domains)
        every = route53resolver.CfnFirewallDomainList(self, "EveryName", name=f"{prefix}-every", domains=["*"])
        rule = route53resolver.CfnFirewallRuleGroup.FirewallRuleProperty
        group = route53resolver.CfnFirewallRuleGroup(
            self,
            "NameRules",
            name=f"{prefix}-names",
            firewall_rules=[
                rule(
                    action="ALLOW",
                    priority=1,
                    firewall_domain_list_id=allowed.attr_id,
                    # A bucket's name is an alias of one that S3 chooses.
                    firewall_domain_redirection_action="TRUST_REDIRECTION_DOMAIN",
                ),
                rule(action="BLOCK", priority=2, firewall_domain_list_id=every.attr_id, block_response="NXDOMAIN"),
            ],
        )
        route53resolver.CfnFirewallRuleGroupAssociation(
            self,
            "NameFirewall",
            name=f"{prefix}-names",
            firewall_rule_group_id=group.attr_id,
            vpc_id=self.vpc.vpc_id,
            priority=_FIREWALL_PRIORITY,
        )

    def _log_flows(
        self, names: ClusterNames, key: kms.IKey, retention: logs.RetentionDays, removal_policy: RemovalPolicy
    ) -> None:
        self.flow_log = logs.LogGroup(
            self,
            "FlowLog",
            log_group_name=names.log_group("-".join(filter(None, (self._purpose, "flows")))),
            encryption_key=key,
            retention=retention,
            removal_policy=removal_policy,
        )
        stack = Stack.of(self)
        role = iam.Role(
            self,
            "FlowLogRole",
            description=f"Holdfast {names.cluster}: writes VPC flow logs",
            assumed_by=iam.ServicePrincipal(
                "vpc-flow-logs.amazonaws.com", conditions={"StringEquals": {"aws:SourceAccount": stack.account}}
            ),
        )
        policy = iam.ManagedPolicy(
            self,
            "FlowLogPolicy",
            description=f"Holdfast {names.cluster}: VPC flow logs to their log group",
            roles=[role],
            statements=[
                iam.PolicyStatement(
                    sid="OwnLog",
                    actions=["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
                    resources=[self.flow_log.log_group_arn],
                )
            ],
        )
        flow_log = ec2.CfnFlowLog(
            self,
            "Flows",
            resource_id=self.vpc.vpc_id,
            resource_type="VPC",
            traffic_type="ALL",
            log_destination_type="cloud-watch-logs",
            log_group_name=self.flow_log.log_group_name,
            deliver_logs_permission_arn=role.role_arn,
            max_aggregation_interval=60,
        )
        depend(flow_log, policy)
