"""Excusing a finding of a policy pack, beside the line that it excuses."""

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_s3 as s3
from constructs import IConstruct

from holdfast.errors import AcknowledgementError

MIN_REASON_WORDS = 5


def acknowledge(construct: IConstruct, finding: str, *, reason: str) -> None:
    """Excuse one finding on `construct` and what is below it, for a reason that a reviewer can judge.

    Args:
        construct: the smallest construct that the finding names.
        finding: the finding's full id, such as `AwsSolutions-S1` or `AwsSolutions-IAM5[Resource::*]`; the name of
            a rule that reports findings with details silences none of them.
        reason: why this is right here. cdk-nag accepts an empty one; Holdfast doesn't.

    Raises:
        AcknowledgementError: the reason has fewer than five words.
    """
    if len(reason.split()) < MIN_REASON_WORDS:
        raise AcknowledgementError(
            f"acknowledging {finding} at {construct.node.path} needs a reason of at least {MIN_REASON_WORDS} words, "
            f"got {reason!r}; say why the finding is right here"
        )
    # The pack's name qualifies the id: this form keeps the reason and the path in validation-report.json.
    pack = finding.split("-", 1)[0]
    Validations.of(construct).acknowledge(Acknowledgment(id=f"{pack}::{finding}", reason=reason))


def written(stack: Stack, arn: str) -> str:
    """Return an ARN as the id of a finding in `stack` writes it: references and variables in angle brackets."""
    resolved = stack.resolve(arn)
    if not isinstance(resolved, str):
        delimiter, parts = resolved["Fn::Join"]
        resolved = delimiter.join(part if isinstance(part, str) else f"<{part['Ref']}>" for part in parts)
    return str(resolved).replace("${", "<").replace("}", ">")


def acknowledge_keys(construct: IConstruct, bucket: s3.IBucket, *keys: str, reason: str) -> None:
    """Excuse that a policy ends in a wildcard for objects of `bucket`, for each of `keys` such as `jobs/*`.

    The finding's id holds the bucket's ARN as the template writes it: a reference within a stack, the name of an
    export between two.
    """
    producer, consumer = Stack.of(bucket), Stack.of(construct)
    if producer.node.path == consumer.node.path:
        logical_id, attribute = producer.resolve(bucket.bucket_arn)["Fn::GetAtt"]
        arn = f"<{logical_id}.{attribute}>"
    else:
        arn = producer.resolve(producer.export_value(bucket.bucket_arn))["Fn::ImportValue"]
    for key in keys:
        acknowledge(construct, f"AwsSolutions-IAM5[Resource::{arn}/{key}]", reason=reason)
