"""The foundation's template: keys, buckets, the enrolment function, logs."""

import json
from typing import Any

import pytest
from tests.kit.support import PARTS, Deployment, as_list, by_sid

from holdfast_node.contract.roles import NODE_ROLES, Role

JOBS, MODELS = "<FoundationBucketsJobs", "<FoundationBucketsModels"
DATA_KEY = "<FoundationKeysData.Arn>"
VIA_S3 = {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}
DIGEST_ONLY = {"StringEquals": {"kms:MessageType": "DIGEST", "kms:SigningAlgorithm": "ECDSA_SHA_256"}}


def bucket_policy(dev: Deployment, bucket: str) -> dict[str, dict[str, Any]]:
    (policy,) = [
        properties["PolicyDocument"]
        for properties in dev.properties("AWS::S3::BucketPolicy").values()
        if properties["Bucket"] == f"<FoundationBuckets{bucket}>"
    ]
    return {statement.get("Sid", f"cdk-{index}"): statement for index, statement in enumerate(policy["Statement"])}


def test_data_key_is_rotated_every_year(dev: Deployment) -> None:
    assert dev.properties("AWS::KMS::Key")["FoundationKeysData"]["EnableKeyRotation"] is True


@pytest.mark.parametrize("key", ["CertificateAuthority", "JobSigning", "ModelSigning"])
def test_signing_keys_are_asymmetric_and_sign_only(dev: Deployment, key: str) -> None:
    properties = dev.properties("AWS::KMS::Key")[f"FoundationKeys{key}"]
    assert (properties["KeySpec"], properties["KeyUsage"]) == ("ECC_NIST_P256", "SIGN_VERIFY")


def test_there_is_a_key_for_each_purpose_and_no_other(dev: Deployment) -> None:
    assert set(dev.properties("AWS::KMS::Key")) == {
        f"FoundationKeys{key}" for key in ("Data", "CertificateAuthority", "JobSigning", "ModelSigning")
    }


Statement = tuple[str | None, str, Any, Any, Any]
#: KMS's default statement: IAM policies of the account decide.
ACCOUNT: Statement = (None, "Allow", {"AWS": "arn:aws:iam::<AWS::AccountId>:root"}, "kms:*", None)
ANYONE = {"AWS": "*"}
USE = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"]
MOVE = ["kms:ReEncryptFrom", "kms:ReEncryptTo"]
LOG_GROUP = "arn:aws:logs:us-east-1:<AWS::AccountId>:log-group:"
AUTO_SCALING = {
    "StringEquals": {"kms:CallerAccount": "<AWS::AccountId>"},
    "ArnEquals": {
        "aws:PrincipalArn": "arn:aws:iam::<AWS::AccountId>:role/aws-service-role/autoscaling.amazonaws.com/"
        "AWSServiceRoleForAutoScaling"
    },
}


def signed_only_by(role: str) -> list[Statement]:
    signer = [
        f"arn:aws:iam::<AWS::AccountId>:role/{role}",
        f"arn:aws:sts::<AWS::AccountId>:assumed-role/{role}/*",
    ]
    return [
        ACCOUNT,
        ("DenyOtherSigners", "Deny", ANYONE, "kms:Sign", {"ArnNotLike": {"aws:PrincipalArn": signer}}),
        ("DenyOtherMessages", "Deny", ANYONE, "kms:Sign", {"StringNotEquals": {"kms:MessageType": "DIGEST"}}),
        (
            *("DenyOtherAlgorithms", "Deny", ANYONE, "kms:Sign"),
            {"StringNotEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256"}},
        ),
    ]


KEY_POLICIES: dict[str, list[Statement]] = {
    "Data": [
        ACCOUNT,
        (
            *("CloudWatchLogs", "Allow", {"Service": "logs.us-east-1.amazonaws.com"}, [*USE, *MOVE]),
            {
                "ArnLike": {
                    "kms:EncryptionContext:aws:logs:arn": [
                        f"{LOG_GROUP}/holdfast/dev/*",
                        f"{LOG_GROUP}/aws/imagebuilder/dev/*",
                        f"{LOG_GROUP}/aws/vendedlogs/states/dev-jobs",
                    ]
                }
            },
        ),
        (
            *("LogDelivery", "Allow", {"Service": "delivery.logs.amazonaws.com"}, "kms:Decrypt"),
            {
                "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
                "StringLike": {"kms:EncryptionContext:SourceArn": "arn:aws:logs:us-east-1:<AWS::AccountId>:*"},
            },
        ),
        (
            *("AutoScalingVolumes", "Allow", ANYONE),
            [*USE, "kms:GenerateDataKeyWithoutPlaintext", *MOVE],
            AUTO_SCALING,
        ),
        (
            *("AutoScalingGrants", "Allow", ANYONE, "kms:CreateGrant"),
            {**AUTO_SCALING, "Bool": {"kms:GrantIsForAWSResource": "true"}},
        ),
    ],
    "CertificateAuthority": signed_only_by("<FoundationEnrolmentRole>"),
    "JobSigning": [ACCOUNT],
    "ModelSigning": signed_only_by("dev-us-east-1-worker"),
}


@pytest.mark.parametrize("key", KEY_POLICIES)
def test_key_policies_say_this_and_nothing_else(dev: Deployment, key: str) -> None:
    policy = dev.properties("AWS::KMS::Key")[f"FoundationKeys{key}"]["KeyPolicy"]
    assert [
        (s.get("Sid"), s["Effect"], s["Principal"], s["Action"], s.get("Condition")) for s in policy["Statement"]
    ] == KEY_POLICIES[key]
    assert {s["Resource"] for s in policy["Statement"]} == {"*"}


@pytest.mark.parametrize("bucket", ["Jobs", "Models"])
def test_buckets_encrypt_with_the_data_key_by_default(dev: Deployment, bucket: str) -> None:
    properties = dev.properties("AWS::S3::Bucket")[f"FoundationBuckets{bucket}"]
    (rule,) = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": DATA_KEY}


@pytest.mark.parametrize("bucket", ["Jobs", "Models", "AccessLogs"])
def test_buckets_are_versioned_and_never_public(dev: Deployment, bucket: str) -> None:
    properties = dev.properties("AWS::S3::Bucket")[f"FoundationBuckets{bucket}"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}


@pytest.mark.parametrize("bucket", ["Jobs", "Models", "AccessLogs"])
def test_buckets_refuse_plaintext_connections(dev: Deployment, bucket: str) -> None:
    denied = [s for s in bucket_policy(dev, bucket).values() if s["Effect"] == "Deny" and s["Action"] == "s3:*"]
    conditions = [statement["Condition"] for statement in denied]
    assert {"Bool": {"aws:SecureTransport": "false"}} in conditions
    assert {"NumericLessThan": {"s3:TlsVersion": 1.2}} in conditions
    assert all(len(statement["Resource"]) == 2 for statement in denied)


ENCRYPTION = "s3:x-amz-server-side-encryption"
DENIED_UPLOADS = {
    "DenyOtherAlgorithm": {"Null": {ENCRYPTION: "false"}, "StringNotEquals": {ENCRYPTION: "aws:kms"}},
    "DenyOtherKey": {
        "Null": {f"{ENCRYPTION}-aws-kms-key-id": "false"},
        "StringNotEquals": {f"{ENCRYPTION}-aws-kms-key-id": DATA_KEY},
    },
    "DenyUnnamedKey": {
        "Null": {f"{ENCRYPTION}-aws-kms-key-id": "true"},
        "StringEquals": {ENCRYPTION: "aws:kms"},
    },
    "DenyCustomerProvidedKey": {"Null": {f"{ENCRYPTION}-customer-algorithm": "false"}},
}


@pytest.mark.parametrize("bucket", ["Jobs", "Models"])
@pytest.mark.parametrize("sid", DENIED_UPLOADS)
def test_buckets_refuse_uploads_with_another_encryption(dev: Deployment, bucket: str, sid: str) -> None:
    statement = bucket_policy(dev, bucket)[sid]
    assert statement == {
        "Sid": sid,
        "Effect": "Deny",
        "Principal": {"AWS": "*"},
        "Action": "s3:PutObject",
        "Resource": f"<FoundationBuckets{bucket}.Arn>/*",
        "Condition": DENIED_UPLOADS[sid],
    }


def test_requests_to_the_buckets_are_recorded(dev: Deployment) -> None:
    buckets = dev.properties("AWS::S3::Bucket")
    assert {name: buckets[f"FoundationBuckets{name}"]["LoggingConfiguration"] for name in ("Jobs", "Models")} == {
        name: {"DestinationBucketName": "<FoundationBucketsAccessLogs>", "LogFilePrefix": f"{name.lower()}/"}
        for name in ("Jobs", "Models")
    }


def test_only_s3s_log_delivery_of_this_account_writes_access_logs(dev: Deployment) -> None:
    statement = bucket_policy(dev, "AccessLogs")["AccessLogDelivery"]
    assert statement["Principal"] == {"Service": "logging.s3.amazonaws.com"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}


def test_enrolment_function_may_do_this_and_nothing_else(dev: Deployment) -> None:
    ca = "<FoundationKeysCertificateAuthority.Arn>"
    assert dev.statements("FoundationEnrolmentPolicy") == {
        "SignCertificates": allow("SignCertificates", "kms:Sign", ca, DIGEST_ONLY),
        "ReadAuthorityKey": allow("ReadAuthorityKey", "kms:GetPublicKey", ca),
        "CaCertificate": allow("CaCertificate", ["s3:GetObject", "s3:PutObject"], f"{JOBS}.Arn>/pki/ca.pem"),
        "RememberProofs": allow("RememberProofs", "s3:PutObject", f"{JOBS}.Arn>/pki/proofs/*"),
        "FindDenials": allow("FindDenials", "s3:ListBucket", f"{JOBS}.Arn>", {"StringLike": {"s3:prefix": "denied/*"}}),
        "EncryptedObjects": allow("EncryptedObjects", ["kms:Decrypt", "kms:GenerateDataKey"], DATA_KEY, VIA_S3),
        "OwnEnvironment": allow(
            "OwnEnvironment",
            "kms:Decrypt",
            DATA_KEY,
            {"StringEquals": {"kms:ViaService": "lambda.us-east-1.amazonaws.com"}},
        ),
        "IdentifyCallers": allow(
            "IdentifyCallers", ["autoscaling:DescribeAutoScalingInstances", "ec2:DescribeInstances"], "*"
        ),
        "OwnLog": allow("OwnLog", ["logs:CreateLogStream", "logs:PutLogEvents"], "<FoundationEnrolmentLog.Arn>"),
    }


def allow(sid: str, action: str | list[str], resource: str, condition: Any = None) -> dict[str, Any]:
    statement = {"Sid": sid, "Effect": "Allow", "Action": action, "Resource": resource}
    return statement | ({"Condition": condition} if condition else {})


def test_refusals_are_counted_in_all_and_by_reason_and_failed_renewals_too(dev: Deployment) -> None:
    pattern = '{ $.event = "enrolment_refused" }'
    filters = dev.properties("AWS::Logs::MetricFilter")
    renewals = filters.pop("FoundationFailedRenewals")
    assert (renewals["FilterPattern"], renewals["LogGroupName"]) == (
        '"WARNING" "renewal_failed"',
        "<FoundationNodeLog>",
    )
    messages = filters.pop("FoundationRefusedMessages")
    assert (messages["FilterPattern"], messages["LogGroupName"]) == (
        '{ $.event = "command_refused" }',
        "<FoundationNodeLog>",
    )
    assert messages["MetricTransformations"][0]["MetricName"] == "RefusedMessages"
    assert {(f["FilterPattern"], f["LogGroupName"]) for f in filters.values()} == {
        (pattern, "<FoundationEnrolmentLog>")
    }
    common = {"MetricNamespace": "Holdfast/dev", "MetricValue": "1"}
    assert [f["MetricTransformations"] for f in filters.values()] == [
        [{**common, "MetricName": "RefusedEnrolments", "DefaultValue": 0}],
        [
            {
                **common,
                "MetricName": "RefusedEnrolmentsByReason",
                "Dimensions": [{"Key": "Reason", "Value": "$.reason"}],
            }
        ],
    ]


def test_used_proofs_are_forgotten_after_a_day_and_nothing_else_is(dev: Deployment) -> None:
    rules = dev.properties("AWS::S3::Bucket")["FoundationBucketsJobs"]["LifecycleConfiguration"]["Rules"]
    assert [(rule["Id"], rule.get("Prefix"), rule.get("ExpirationInDays")) for rule in rules] == [
        ("Hygiene", None, None),
        ("UsedProofs", "pki/proofs/", 1),
    ]


def test_enrolment_function_knows_each_role_and_group_by_name(dev: Deployment) -> None:
    environment = dev.properties("AWS::Lambda::Function")["FoundationEnrolmentFunction"]["Environment"]["Variables"]
    assert json.loads(environment.pop("HOLDFAST_ROLES")) == {
        str(role): {
            "role_arn": f"arn:aws:iam::<AWS::AccountId>:role/dev-us-east-1-{role}",
            "group": f"dev-{role}",
        }
        for role in NODE_ROLES
    }
    assert environment == {
        "HOLDFAST_CLUSTER": "dev",
        "HOLDFAST_CA_KEY": "<FoundationKeysCertificateAuthority.Arn>",
        "HOLDFAST_CA_GENERATION": "1",
        "HOLDFAST_JOBS_BUCKET": f"{JOBS}>",
        "HOLDFAST_CERT_HOURS": "24",
    }


def test_role_and_group_names_that_enrolment_expects_are_those_that_exist(dev: Deployment) -> None:
    roles = {p.get("RoleName") for p in dev.properties("AWS::IAM::Role").values()} - {None}
    groups = {p["AutoScalingGroupName"] for p in dev.properties("AWS::AutoScaling::AutoScalingGroup").values()}
    assert roles == {f"dev-us-east-1-{role}" for role in Role}
    assert groups == {f"dev-{role}" for role in Role}


def test_enrolment_function_is_python_311_with_an_encrypted_environment(dev: Deployment) -> None:
    properties = dev.properties("AWS::Lambda::Function")["FoundationEnrolmentFunction"]
    assert {key: properties[key] for key in ("Runtime", "Handler", "Architectures", "FunctionName", "KmsKeyArn")} == {
        "Runtime": "python3.11",
        "Handler": "handler.handler",
        "Architectures": ["x86_64"],
        "FunctionName": "dev-enrolment",
        "KmsKeyArn": DATA_KEY,
    }


def test_enrolment_sets_no_concurrency_aside_unless_the_settings_say_so(dev: Deployment) -> None:
    properties = dev.properties("AWS::Lambda::Function")["FoundationEnrolmentFunction"]
    assert "ReservedConcurrentExecutions" not in properties


def test_every_log_group_has_the_key_and_the_settings_retention(dev: Deployment) -> None:
    groups = dev.properties("AWS::Logs::LogGroup")
    assert {p["LogGroupName"] for p in groups.values()} == {
        "/holdfast/dev/nodes",
        "/holdfast/dev/enrolment",
        "/holdfast/dev/flows",
        "/aws/vendedlogs/states/dev-jobs",
    }
    assert {(p["KmsKeyId"], p["RetentionInDays"]) for p in groups.values()} == {(DATA_KEY, 30)}


KEPT = ("AWS::KMS::Key", "AWS::S3::Bucket", "AWS::EFS::FileSystem", "AWS::Logs::LogGroup")


@pytest.mark.parametrize("kind", KEPT)
def test_production_keeps_its_data_on_deletion_and_replacement(prod: Deployment, kind: str) -> None:
    policies = {(r["DeletionPolicy"], r["UpdateReplacePolicy"]) for r in prod.resources(kind).values()}
    # A creation that fails and is rolled back leaves nothing that nobody owns.
    assert policies == {("RetainExceptOnCreate", "Retain")}


@pytest.mark.parametrize("part", PARTS)
def test_production_stacks_are_not_deleted_by_mistake(prod: Deployment, dev: Deployment, part: str) -> None:
    assert prod.termination_protection(part) is True
    assert dev.termination_protection(part) is False


@pytest.mark.parametrize("kind", KEPT)
def test_the_local_cluster_keeps_nothing(local: Deployment, kind: str) -> None:
    assert {r["DeletionPolicy"] for r in local.resources(kind).values()} == {"Delete"}


def test_nothing_empties_a_bucket_by_itself(local: Deployment) -> None:
    types = {r["Type"] for part in PARTS for r in local.template(part)["Resources"].values()}
    assert not [kind for kind in types if kind.startswith("Custom::")]


def test_policies_are_customer_managed_and_never_inline(dev: Deployment) -> None:
    assert not dev.resources("AWS::IAM::Policy")
    for role in dev.properties("AWS::IAM::Role").values():
        assert "Policies" not in role
        assert "ManagedPolicyArns" not in role


#: What a resource's own policy may say with a wildcard, and why.
WILDCARDS = {
    ("Allow", "kms:*"): "KMS's default statement: the account's IAM policies decide",
    ("Deny", "s3:*"): "no plaintext connection, whatever it asks for",
    ("Deny", "*"): "no plaintext connection, whatever it asks for",
}
#: Types with a policy of their own, and where it is.
RESOURCE_POLICIES = {
    "AWS::KMS::Key": "KeyPolicy",
    "AWS::S3::BucketPolicy": "PolicyDocument",
    "AWS::EFS::FileSystem": "FileSystemPolicy",
    "AWS::EC2::VPCEndpoint": "PolicyDocument",
}


def test_no_policy_has_a_wildcard_action(dev: Deployment) -> None:
    for name, policy in dev.properties("AWS::IAM::ManagedPolicy").items():
        for statement in by_sid(policy["PolicyDocument"]).values():
            assert not [action for action in as_list(statement["Action"]) if "*" in action], name


@pytest.mark.parametrize("kind", RESOURCE_POLICIES)
def test_no_resources_policy_has_a_wildcard_action_but_these(dev: Deployment, kind: str) -> None:
    policies = [properties[RESOURCE_POLICIES[kind]] for properties in dev.properties(kind).values()]
    assert policies
    for statement in [statement for policy in policies for statement in policy["Statement"]]:
        for action in as_list(statement["Action"]):
            assert "*" not in action or (statement["Effect"], action) in WILDCARDS, statement
            if action == "kms:*":
                assert statement["Principal"] == ACCOUNT[2]
