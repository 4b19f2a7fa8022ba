import json
from typing import Any

import pytest

from .conftest import ACCOUNT, Cloud, allow, unique

KEY_POLICY = {
    "Version": "2012-10-17",
    "Statement": [allow("kms:*") | {"Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}],
}
KEY = {"Type": "AWS::KMS::Key", "Properties": {"KeyPolicy": KEY_POLICY}}


def bucket(**properties: Any) -> dict[str, Any]:
    rule = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": {"Fn::GetAtt": ["Key", "Arn"]}}
    encryption = [{"BucketKeyEnabled": True, "ServerSideEncryptionByDefault": rule}]
    made = {"BucketEncryption": {"ServerSideEncryptionConfiguration": encryption}, **properties}
    return {"Type": "AWS::S3::Bucket", "Properties": made}


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> str:
    logs = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": unique("logs")}}
    rules = [
        {"Id": "Hygiene", "Status": "Enabled", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}},
        {"Id": "Old", "Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 30}},
    ]
    jobs = bucket(
        VersioningConfiguration={"Status": "Enabled"},
        LifecycleConfiguration={"Rules": rules},
        LoggingConfiguration={"DestinationBucketName": {"Ref": "Logs"}, "LogFilePrefix": "jobs/"},
        OwnershipControls={"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]},
    )
    return cloud.deploy({"Key": KEY, "Logs": logs, "Jobs": jobs})


@pytest.fixture(scope="module")
def names(cloud: Cloud, stack: str) -> tuple[str, str]:
    """Return the bucket's name and its key's ARN."""
    key = cloud.client("kms").describe_key(KeyId=cloud.resource(stack, "Key"))["KeyMetadata"]["Arn"]
    return cloud.resource(stack, "Jobs"), key


def test_template_sets_the_default_encryption(cloud: Cloud, names: tuple[str, str]) -> None:
    answer = cloud.client("s3").get_bucket_encryption(Bucket=names[0])
    (rule,) = answer["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": names[1]}
    assert rule["BucketKeyEnabled"] is True


def test_template_sets_the_lifecycle(cloud: Cloud, names: tuple[str, str]) -> None:
    rules = {
        rule["ID"]: rule for rule in cloud.client("s3").get_bucket_lifecycle_configuration(Bucket=names[0])["Rules"]
    }
    assert rules["Hygiene"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rules["Old"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}


def test_template_sets_logging_and_ownership(cloud: Cloud, stack: str, names: tuple[str, str]) -> None:
    s3 = cloud.client("s3")
    logging = s3.get_bucket_logging(Bucket=names[0])["LoggingEnabled"]
    assert (logging["TargetBucket"], logging["TargetPrefix"]) == (cloud.resource(stack, "Logs"), "jobs/")
    ownership = s3.get_bucket_ownership_controls(Bucket=names[0])["OwnershipControls"]
    assert ownership["Rules"] == [{"ObjectOwnership": "BucketOwnerPreferred"}]


def test_removed_property_is_removed(cloud: Cloud) -> None:
    name = unique("plain")
    resources = {"Key": KEY, "Jobs": bucket(BucketName=name)}
    stack = cloud.deploy(resources)
    cloud.update(stack, {"Key": KEY, "Jobs": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": name}}})
    (rule,) = cloud.client("s3").get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"


READ, WRITE = "s3:GetObject", "s3:PutObject"


def test_reader_with_the_keys_permission_reads(cloud: Cloud, names: tuple[str, str]) -> None:
    cloud.client("s3").put_object(Bucket=names[0], Key="job", Body=b"content")
    s3 = cloud.client("s3", cloud.session(allow(READ), allow("kms:Decrypt", names[1])))
    answer = s3.get_object(Bucket=names[0], Key="job")
    assert answer["Body"].read() == b"content"
    assert (answer["ServerSideEncryption"], answer["SSEKMSKeyId"]) == ("aws:kms", names[1])


def test_reader_without_the_keys_permission_is_refused(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    version = cloud.client("s3").put_object(Bucket=names[0], Key="job", Body=b"content")["VersionId"]
    s3 = cloud.client("s3", cloud.session(allow([READ, "s3:GetObjectVersion"]), allow("kms:GenerateDataKey", names[1])))
    with refused("AccessDenied"):
        s3.get_object(Bucket=names[0], Key="job")
    with refused("AccessDenied"):
        s3.get_object(Bucket=names[0], Key="job", VersionId=version)
    with refused("AccessDenied"):
        s3.copy_object(Bucket=names[0], Key="copy", CopySource={"Bucket": names[0], "Key": "job"})
    assert s3.head_object(Bucket=names[0], Key="job")["ContentLength"] == 7


def test_old_version_needs_its_own_key(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    s3, kms = cloud.client("s3"), cloud.client("kms")
    other = kms.create_key(Policy=json.dumps(KEY_POLICY))["KeyMetadata"]["Arn"]
    old = s3.put_object(Bucket=names[0], Key="two", Body=b"old", ServerSideEncryption="aws:kms", SSEKMSKeyId=other)
    s3.put_object(Bucket=names[0], Key="two", Body=b"new")
    reader = cloud.client("s3", cloud.session(allow("s3:GetObject*"), allow("kms:Decrypt", names[1])))
    assert reader.get_object(Bucket=names[0], Key="two")["Body"].read() == b"new"
    with refused("AccessDenied"):
        reader.get_object(Bucket=names[0], Key="two", VersionId=old["VersionId"])


def test_denial_names_the_missing_key_permission(cloud: Cloud, names: tuple[str, str]) -> None:
    cloud.client("s3").put_object(Bucket=names[0], Key="job", Body=b"content")
    s3 = cloud.client("s3", cloud.session(allow(READ)))
    with pytest.raises(s3.exceptions.ClientError, match="kms:Decrypt on resource"):
        s3.get_object(Bucket=names[0], Key="job")


def test_writer_with_the_keys_permission_writes(cloud: Cloud, names: tuple[str, str]) -> None:
    s3 = cloud.client("s3", cloud.session(allow(WRITE), allow("kms:GenerateDataKey", names[1])))
    s3.put_object(Bucket=names[0], Key="job", Body=b"content")


def test_writer_without_the_keys_permission_is_refused(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    s3 = cloud.client("s3", cloud.session(allow(WRITE), allow("kms:Decrypt", names[1])))
    with refused("AccessDenied"):
        s3.put_object(Bucket=names[0], Key="job", Body=b"content")
    with refused("AccessDenied"):
        s3.put_object(Bucket=names[0], Key="job", Body=b"content", ServerSideEncryption="aws:kms", SSEKMSKeyId=names[1])


def test_object_without_a_key_needs_none(cloud: Cloud) -> None:
    name = unique("plain")
    cloud.client("s3").create_bucket(Bucket=name)
    s3 = cloud.client("s3", cloud.session(allow([READ, WRITE])))
    s3.put_object(Bucket=name, Key="job", Body=b"content")
    assert s3.get_object(Bucket=name, Key="job")["Body"].read() == b"content"


def test_key_limited_to_s3_and_its_bucket_serves_it(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    cloud.client("s3").put_object(Bucket=names[0], Key="job", Body=b"content")

    def reader(service: str, context: str) -> Any:
        condition = {"kms:ViaService": service, "kms:EncryptionContext:aws:s3:arn": context}
        return cloud.client("s3", cloud.session(allow(READ), allow("kms:Decrypt", names[1], StringEquals=condition)))

    here, there = "s3.us-east-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"
    arn = f"arn:aws:s3:::{names[0]}"
    assert reader(here, arn).get_object(Bucket=names[0], Key="job")["Body"].read() == b"content"
    for service, context in ((there, arn), (here, "arn:aws:s3:::another-bucket")):
        with refused("AccessDenied"):
            reader(service, context).get_object(Bucket=names[0], Key="job")


def test_key_permission_through_s3_alone_gives_no_direct_use(
    cloud: Cloud, refused: Any, names: tuple[str, str]
) -> None:
    session = cloud.session(
        allow("kms:GenerateDataKey", names[1], StringEquals={"kms:ViaService": "s3.us-east-1.amazonaws.com"})
    )
    with refused("AccessDeniedException"):
        cloud.client("kms", session).generate_data_key(KeyId=names[1], KeySpec="AES_256")


def test_conditional_write_happens_once(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    s3, key = cloud.client("s3"), unique("once")
    s3.put_object(Bucket=names[0], Key=key, Body=b"first", IfNoneMatch="*")
    with refused("PreconditionFailed"):
        s3.put_object(Bucket=names[0], Key=key, Body=b"second", IfNoneMatch="*")
    assert s3.get_object(Bucket=names[0], Key=key)["Body"].read() == b"first"


def test_bucket_policy_sees_which_key_an_upload_names(cloud: Cloud, refused: Any, names: tuple[str, str]) -> None:
    name, s3 = unique("named"), cloud.client("s3")
    s3.create_bucket(Bucket=name)
    header = "s3:x-amz-server-side-encryption-aws-kms-key-id"
    deny = allow(WRITE, f"arn:aws:s3:::{name}/*", Null={header: "false"}, StringNotEquals={header: names[1]})
    statement = deny | {"Effect": "Deny", "Principal": "*"}
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    writer = cloud.client("s3", cloud.session(allow(WRITE), allow("kms:GenerateDataKey")))
    other = cloud.client("kms").create_key(Policy=json.dumps(KEY_POLICY))["KeyMetadata"]["Arn"]
    writer.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=names[1])
    with refused("AccessDenied"):
        writer.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=other)
    # A denial binds root too.
    with refused("AccessDenied"):
        s3.put_object(Bucket=name, Key="k", Body=b"x", ServerSideEncryption="aws:kms", SSEKMSKeyId=other)
