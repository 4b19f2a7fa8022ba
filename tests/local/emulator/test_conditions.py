import hashlib
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from .conftest import Cloud, allow, unique

DIGEST = hashlib.sha256(b"message").digest()
GOOD = {"MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}


@pytest.fixture(scope="module")
def signing_key(cloud: Cloud) -> str:
    kms = cloud.client("kms")
    key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]
    kms.create_alias(AliasName="alias/cluster-ca", TargetKeyId=key["KeyId"])
    return str(key["Arn"])


def test_digest_is_signed_as_it_is(cloud: Cloud, signing_key: str) -> None:
    kms = cloud.client("kms")
    signature = kms.sign(KeyId=signing_key, Message=DIGEST, **GOOD)["Signature"]
    public = load_der_public_key(kms.get_public_key(KeyId=signing_key)["PublicKey"])
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"another message", ec.ECDSA(hashes.SHA256()))


CONDITIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "signing algorithm, the same": ({"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256"}}, True),
    "signing algorithm, another": ({"StringEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_384"}}, False),
    "message type, the same": ({"StringEquals": {"kms:MessageType": "DIGEST"}}, True),
    "message type, another": ({"StringEquals": {"kms:MessageType": "RAW"}}, False),
    "alias, the same": ({"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/cluster-ca"}}, True),
    "alias, another": ({"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/other"}}, False),
    "caller's account, the same": ({"StringEquals": {"kms:CallerAccount": "000000000000"}}, True),
    "caller's account, another": ({"StringEquals": {"kms:CallerAccount": "111111111111"}}, False),
    "only through a service": ({"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}, False),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_condition_on_signing(cloud: Cloud, refused: Any, signing_key: str, name: str) -> None:
    condition, allowed = CONDITIONS[name]
    kms = cloud.client("kms", cloud.session(allow("kms:Sign", signing_key, **condition)))
    if allowed:
        kms.sign(KeyId=signing_key, Message=DIGEST, **GOOD)
    else:
        with refused("AccessDeniedException"):
            kms.sign(KeyId=signing_key, Message=DIGEST, **GOOD)


def test_encryption_context_is_a_condition(cloud: Cloud, refused: Any) -> None:
    key = cloud.client("kms").create_key(Description=unique("data"))["KeyMetadata"]["Arn"]
    condition = {"StringEquals": {"kms:EncryptionContext:cluster": "demo"}}
    kms = cloud.client("kms", cloud.session(allow(["kms:Encrypt", "kms:Decrypt"], key, **condition)))
    blob = kms.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext={"cluster": "demo"})["CiphertextBlob"]
    assert kms.decrypt(CiphertextBlob=blob, EncryptionContext={"cluster": "demo"})["Plaintext"] == b"secret"
    for context in ({}, {"cluster": "other"}):
        with refused("AccessDeniedException"):
            kms.encrypt(KeyId=key, Plaintext=b"secret", EncryptionContext=context)


PARAMETERS = (
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64",
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64",
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id",
)


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_public_image_parameter_resolves_in_a_template(cloud: Cloud, parameter: str) -> None:
    image = {"Type": "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>", "Default": parameter}
    data = {"ImageId": {"Ref": "Image"}, "InstanceType": "t3.micro"}
    template = {"Type": "AWS::EC2::LaunchTemplate", "Properties": {"LaunchTemplateData": data}}
    stack = cloud.deploy({"Template": template}, Parameters={"Image": image})
    (version,) = cloud.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=cloud.resource(stack, "Template")
    )["LaunchTemplateVersions"]
    expected = cloud.client("ssm").get_parameter(Name=parameter)["Parameter"]["Value"]
    assert version["LaunchTemplateData"]["ImageId"] == expected
    assert expected.startswith("ami-")


def test_unknown_public_parameter_is_not_found(cloud: Cloud, refused: Any) -> None:
    with refused("ParameterNotFound"):
        cloud.client("ssm").get_parameter(Name="/aws/service/something-else/latest")
