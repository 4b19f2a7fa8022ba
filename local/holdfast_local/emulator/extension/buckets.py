"""Bucket properties that ministack's CloudFormation drops: encryption, lifecycle, logging and ownership.

Each is turned into the request body that S3's own API takes, so that ministack validates, stores and returns it.
"""

from collections.abc import Callable
from typing import Any

from holdfast_local.emulator.extension.seams import seam


def install() -> None:
    """Make AWS::S3::Bucket apply the four properties, and remove them again."""
    s3 = seam(
        "ministack.services.s3",
        "_put_bucket_encryption",
        "_delete_bucket_encryption",
        "_put_bucket_lifecycle",
        "_delete_bucket_lifecycle",
        "_put_bucket_logging",
        "_put_bucket_ownership_controls",
        "_delete_bucket_ownership_controls",
    )
    templates = seam("ministack.services.cloudformation.provisioners", "_S3_BUCKET_CONFIGURATIONS")
    body = _body_maker()
    templates._S3_BUCKET_CONFIGURATIONS += (
        (
            "BucketEncryption",
            lambda value: body("PutBucketEncryption", ServerSideEncryptionConfiguration=_encryption(value)),
            _checked(s3._put_bucket_encryption),
            s3._delete_bucket_encryption,
        ),
        (
            "LifecycleConfiguration",
            lambda value: body("PutBucketLifecycleConfiguration", LifecycleConfiguration=_lifecycle(value)),
            _checked(s3._put_bucket_lifecycle),
            s3._delete_bucket_lifecycle,
        ),
        (
            "LoggingConfiguration",
            lambda value: body("PutBucketLogging", BucketLoggingStatus=_logging(value)),
            _checked(s3._put_bucket_logging),
            lambda name: s3._put_bucket_logging(name, b"<BucketLoggingStatus/>"),
        ),
        (
            "OwnershipControls",
            lambda value: body("PutBucketOwnershipControls", OwnershipControls={"Rules": value.get("Rules", [])}),
            _checked(s3._put_bucket_ownership_controls),
            s3._delete_bucket_ownership_controls,
        ),
    )


def _body_maker() -> Callable[..., bytes]:
    model = seam("botocore.session").get_session().get_service_model("s3")
    serializer = seam("botocore.serialize").create_serializer("rest-xml", False)

    def body(operation: str, **parameters: Any) -> bytes:
        request = serializer.serialize_to_request({"Bucket": "any", **parameters}, model.operation_model(operation))
        made: bytes = request["body"]
        return made

    return body


def _checked(put: Callable[[str, bytes], tuple[int, Any, Any]]) -> Callable[[str, bytes], None]:
    def apply(name: str, body: bytes) -> None:
        status, _headers, answer = put(name, body)
        if status >= 300:
            raise ValueError(f"bucket {name}: {answer!r:.300}")

    return apply


def _true(value: Any) -> bool:
    return str(value).lower() == "true"


def _encryption(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "Rules": [
            {
                "ApplyServerSideEncryptionByDefault": _default(rule.get("ServerSideEncryptionByDefault", {})),
                "BucketKeyEnabled": _true(rule.get("BucketKeyEnabled")),
            }
            for rule in value.get("ServerSideEncryptionConfiguration", [])
        ]
    }


def _default(rule: dict[str, Any]) -> dict[str, Any]:
    """Return the rule; without a key it becomes SSE-S3, since ministack has no `aws/s3` key and refuses the uploads.

    The CDK's bootstrap bucket is such a case. Both keys are AWS's own, and usable by whoever may use the bucket.
    """
    return rule if rule.get("KMSMasterKeyID") else {"SSEAlgorithm": "AES256"}


def _lifecycle(value: dict[str, Any]) -> dict[str, Any]:
    return {"Rules": [_lifecycle_rule(index, rule) for index, rule in enumerate(value.get("Rules", []))]}


def _lifecycle_rule(index: int, rule: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "ID": rule.get("Id", f"rule-{index}"),
        "Status": rule["Status"],
        "Filter": {"Prefix": rule.get("Prefix", "")},
    }
    if "ExpirationInDays" in rule:
        made["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    elif _true(rule.get("ExpiredObjectDeleteMarker")):
        made["Expiration"] = {"ExpiredObjectDeleteMarker": True}
    if noncurrent := rule.get("NoncurrentVersionExpiration"):
        made["NoncurrentVersionExpiration"] = {name: int(number) for name, number in noncurrent.items()}
    if abort := rule.get("AbortIncompleteMultipartUpload"):
        made["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": int(abort["DaysAfterInitiation"])}
    if transitions := rule.get("Transitions"):
        made["Transitions"] = [
            {"Days": int(step["TransitionInDays"]), "StorageClass": step["StorageClass"]} for step in transitions
        ]
    return made


def _logging(value: dict[str, Any]) -> dict[str, Any]:
    # Without a destination, a bucket logs to itself (AWS::S3::Bucket LoggingConfiguration); `cdk-nag` refuses that.
    return {
        "LoggingEnabled": {
            "TargetBucket": value["DestinationBucketName"],
            "TargetPrefix": value.get("LogFilePrefix", ""),
        }
    }
