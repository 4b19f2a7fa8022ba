"""Conditions that several policies share."""

from aws_cdk import Stack
from constructs import IConstruct

#: A signing key signs SHA-256 digests with ECDSA and nothing else.
DIGEST_ONLY = {"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256", "kms:MessageType": "DIGEST"}}


def via_s3(scope: IConstruct) -> dict[str, dict[str, str]]:
    """Return the condition that a key is used by S3, on behalf of a caller that may reach the object."""
    return {"StringEquals": {"kms:ViaService": f"s3.{Stack.of(scope).region}.amazonaws.com"}}


def log_delivery(scope: IConstruct) -> dict[str, dict[str, str]]:
    """Return the condition that a key is used for this account's and region's vended logs.

    The context's value itself ends in a star (Step Functions developer guide, "Data at rest encryption").
    """
    stack = Stack.of(scope)
    source = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:*"
    return {"StringLike": {"kms:EncryptionContext:SourceArn": source}}
