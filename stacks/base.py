"""What all of the deployment's stacks share."""

from aws_cdk import Environment as Place
from aws_cdk import RemovalPolicy, Stack
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.settings import Environment, Removal, Settings


class ClusterStack(Stack):
    """One of a cluster's stacks, named `Holdfast-<cluster>-<part>`.

    The region is the settings'; the account is whichever the credentials belong to, so the same template is
    deployed everywhere and no zone, image or account is looked up at synthesis.
    """

    def __init__(self, scope: Construct, part: str, *, settings: Settings, description: str) -> None:
        super().__init__(
            scope,
            f"Holdfast-{settings.cluster.name}-{part}",
            env=Place(region=settings.cluster.region),
            description=f"Holdfast {settings.cluster.name}: {description}",
            termination_protection=settings.cluster.environment is Environment.PROD,
        )
        destroy = settings.cluster.removal is Removal.DESTROY
        self.data_removal = RemovalPolicy.DESTROY if destroy else RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE
        self.log_retention = _retention(settings.cluster.log_retention_days)


def _retention(days: int) -> logs.RetentionDays:
    """Return CDK's member for a number of days; the settings allow exactly those that CloudWatch Logs has."""
    return _RETENTION[days]


_RETENTION: dict[int, logs.RetentionDays] = {
    1: logs.RetentionDays.ONE_DAY,
    3: logs.RetentionDays.THREE_DAYS,
    5: logs.RetentionDays.FIVE_DAYS,
    7: logs.RetentionDays.ONE_WEEK,
    14: logs.RetentionDays.TWO_WEEKS,
    30: logs.RetentionDays.ONE_MONTH,
    60: logs.RetentionDays.TWO_MONTHS,
    90: logs.RetentionDays.THREE_MONTHS,
    120: logs.RetentionDays.FOUR_MONTHS,
    150: logs.RetentionDays.FIVE_MONTHS,
    180: logs.RetentionDays.SIX_MONTHS,
    365: logs.RetentionDays.ONE_YEAR,
    400: logs.RetentionDays.THIRTEEN_MONTHS,
    545: logs.RetentionDays.EIGHTEEN_MONTHS,
    731: logs.RetentionDays.TWO_YEARS,
    1096: logs.RetentionDays.THREE_YEARS,
    1827: logs.RetentionDays.FIVE_YEARS,
    2192: logs.RetentionDays.SIX_YEARS,
    2557: logs.RetentionDays.SEVEN_YEARS,
    2922: logs.RetentionDays.EIGHT_YEARS,
    3288: logs.RetentionDays.NINE_YEARS,
    3653: logs.RetentionDays.TEN_YEARS,
}
