"""The names that a cluster's resources carry.

They are deterministic, so that the enrolment function knows the roles and groups that only a later stack makes,
and so that policies can name what they allow without a reference that would tie the stacks in a knot.
"""

from dataclasses import dataclass

from aws_cdk import Arn, ArnComponents, ArnFormat, Stack

from holdfast.errors import PropertyError
from holdfast_node.contract.documents import require
from holdfast_node.contract.errors import DocumentError
from holdfast_node.contract.roles import CLUSTER_PATTERN, NodeRole, group_name

#: The tag that says which cluster an instance is part of; policies for operators ask for it.
CLUSTER_TAG = "holdfast:cluster"


@dataclass(frozen=True)
class ClusterNames:
    """The names of one cluster's resources.

    Raises:
        PropertyError: the cluster's name does not match the contract's pattern.
    """

    cluster: str

    def __post_init__(self) -> None:
        try:
            require(CLUSTER_PATTERN, self.cluster, "cluster_name")
        except DocumentError as error:
            raise PropertyError(f"{error}; use lower-case letters, digits and hyphens") from None

    def group(self, role: NodeRole) -> str:
        """Return the name of the role's Auto Scaling group and of its launch template."""
        return group_name(self.cluster, role)

    def role(self, role: NodeRole, stack: Stack) -> str:
        """Return the name of the IAM role; IAM is global, so the region is part of it."""
        return f"{self.cluster}-{stack.region}-{role}"

    def role_arn(self, role: NodeRole, stack: Stack) -> str:
        """Return the ARN of the IAM role without referring to it."""
        return Arn.format(
            ArnComponents(service="iam", region="", resource="role", resource_name=self.role(role, stack)), stack
        )

    @property
    def enrolment_function(self) -> str:
        """The enrolment function's name."""
        return f"{self.cluster}-enrolment"

    @property
    def state_machine(self) -> str:
        """The job state machine's name."""
        return f"{self.cluster}-jobs"

    def state_machine_arn(self, stack: Stack) -> str:
        """Return the ARN of the job state machine without referring to it."""
        return Arn.format(
            ArnComponents(
                service="states",
                resource="stateMachine",
                resource_name=self.state_machine,
                arn_format=ArnFormat.COLON_RESOURCE_NAME,
            ),
            stack,
        )

    @property
    def session_document(self) -> str:
        """The Session document's name; AWS keeps names that begin with `aws` or `amazon` to itself."""
        return f"holdfast-{self.cluster}-session"

    @property
    def metrics(self) -> str:
        """The namespace of the cluster's own metrics."""
        return f"Holdfast/{self.cluster}"

    def log_group(self, subject: str) -> str:
        """Return the name of one of the cluster's log groups."""
        return f"/holdfast/{self.cluster}/{subject}"

    def image_log_group(self, subject: str) -> str:
        """Return the name of a log group of EC2 Image Builder's, whose service role writes below this prefix only."""
        return f"/aws/imagebuilder/{self.cluster}/{subject}"

    def image_parameter(self, image: str) -> str:
        """Return the name of the SSM parameter that holds a baked image's id; again, the service's own prefix."""
        return f"/imagebuilder/holdfast/{self.cluster}/{image}"

    @property
    def job_log_group(self) -> str:
        """The state machine's log group; under this prefix the log's resource policy cannot outgrow its limit."""
        return f"/aws/vendedlogs/states/{self.state_machine}"
