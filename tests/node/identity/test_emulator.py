"""Enrolment against the embedded AWS: its STS verifies the proof, its IAM holds the function to its permissions."""

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from identity_support import CLUSTER, FUNCTION, make_csr, node_config

from holdfast_local.emulator.process import Emulator
from holdfast_node.contract.roles import NODE_ROLES
from holdfast_node.identity import CSR_HEADER, Identity, IdentityError, enrol, prove
from holdfast_node.signing import kms_signer, kms_verifier

AWS_PYTHON = FUNCTION.parents[3] / ".venv-aws/bin/python"
ACCOUNT, REGION = "000000000000", "us-east-1"
pytestmark = pytest.mark.skipif(not AWS_PYTHON.exists(), reason="the embedded AWS is not installed: make setup")


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **s} for s in statements]})


def archive() -> bytes:
    """Return the function's code as it is uploaded."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for path in FUNCTION.glob("*.py"):
            file.write(path, path.name)
    return data.getvalue()


class Cloud:
    """A deployed cluster: CA key, bucket, function, and a group of one running instance for each role."""

    def __init__(self, emulator: Emulator) -> None:
        self.environment = emulator.environment()
        self.root = self._session("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        kms, iam = self.client("kms"), self.client("iam")
        key = kms.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
        self.ca_key: str = key
        self.client("s3").create_bucket(Bucket="jobs")
        trust = {"Action": "sts:AssumeRole", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}}
        invoke = document({"Action": "lambda:InvokeFunction", "Resource": "*"})
        self.roles: dict[str, str] = {}
        for name in [f"demo-{role}" for role in NODE_ROLES] + ["demo-other"]:
            self.roles[name] = iam.create_role(RoleName=name, AssumeRolePolicyDocument=document(trust))["Role"]["Arn"]
            iam.put_role_policy(RoleName=name, PolicyName="invoke", PolicyDocument=invoke)
        self.instances = self._instances()
        self._function(key, trust)

    def _session(self, key: str, secret: str) -> boto3.Session:
        return boto3.Session(self.environment[key], self.environment[secret], region_name=REGION)

    def client(self, service: str) -> Any:
        return self.root.client(service)  # type: ignore[call-overload]

    def node(self, role: str, session_name: str) -> boto3.Session:
        """Return the credentials that the metadata service would give."""
        given = self.client("sts").assume_role(RoleArn=self.roles[role], RoleSessionName=session_name)["Credentials"]
        return boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], region_name=REGION)

    def _function(self, key: str, trust: dict[str, Any]) -> None:
        iam = self.client("iam")
        arn = iam.create_role(RoleName="enrolment", AssumeRolePolicyDocument=document(trust))["Role"]["Arn"]
        policy = document(
            {"Action": ["kms:Sign", "kms:GetPublicKey"], "Resource": key},
            {"Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::jobs/pki/ca.pem"},
            {"Action": "s3:PutObject", "Resource": "arn:aws:s3:::jobs/pki/proofs/*"},
            {"Action": "s3:ListBucket", "Resource": "arn:aws:s3:::jobs"},
            {"Action": ["ec2:DescribeInstances", "autoscaling:DescribeAutoScalingInstances"], "Resource": "*"},
        )
        iam.put_role_policy(RoleName="enrolment", PolicyName="only", PolicyDocument=policy)
        roles = {role: {"role_arn": self.roles[f"demo-{role}"], "group": f"demo-{role}"} for role in NODE_ROLES}
        self.variables = {
            "HOLDFAST_CLUSTER": CLUSTER,
            "HOLDFAST_CA_KEY": key,
            "HOLDFAST_JOBS_BUCKET": "jobs",
            "HOLDFAST_ROLES": json.dumps(roles),
        }
        self.client("lambda").create_function(
            FunctionName="demo-enrolment",
            Runtime="python3.11",
            Role=arn,
            Handler="handler.handler",
            Code={"ZipFile": archive()},
            Environment={"Variables": self.variables},
            Timeout=30,
        )

    def _instances(self) -> dict[str, dict[str, Any]]:
        ec2, scaling = self.client("ec2"), self.client("autoscaling")
        vpc = ec2.create_vpc(CidrBlock="10.30.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.30.0.0/24")["Subnet"]["SubnetId"]
        data = {"ImageId": "ami-0123456789abcdef0", "InstanceType": "c5.large"}
        template = ec2.create_launch_template(LaunchTemplateName="node", LaunchTemplateData=data)["LaunchTemplate"]
        found = {}
        for role in NODE_ROLES:
            group = f"demo-{role}"
            scaling.create_auto_scaling_group(
                AutoScalingGroupName=group,
                MinSize=0,
                MaxSize=1,
                DesiredCapacity=1,
                LaunchTemplate={"LaunchTemplateId": template["LaunchTemplateId"], "Version": "1"},
                VPCZoneIdentifier=subnet,
            )
            (member,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
            (instance,) = member["Instances"]
            pages = ec2.describe_instances(InstanceIds=[instance["InstanceId"]])["Reservations"]
            found[group] = pages[0]["Instances"][0]
        return found


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"), AWS_PYTHON, port=0, region=REGION)
    emulator.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
            patch.setenv(name, emulator.environment()[name])
        try:
            yield Cloud(emulator)
        finally:
            sys.stderr.write("".join(emulator.log.read_text().splitlines(keepends=True)[-60:]))
            emulator.stop()


def enrol_as(cloud: Cloud, role: str, tls: Path, *, instance: str | None = None, claim: str | None = None) -> Identity:
    own = cloud.instances[f"demo-{role}"]["InstanceId"]
    tls.mkdir(exist_ok=True)
    return enrol(
        node_config(role=claim or role, region=REGION),
        cloud.node(f"demo-{role}", instance or own),
        instance_id=instance or own,
        tls_dir=tls,
        sleep=lambda _: None,
    )


def test_a_node_of_each_role_enrols_with_one_ca(cloud: Cloud, tmp_path: Path) -> None:
    for role in NODE_ROLES:
        identity = enrol_as(cloud, role, tmp_path / role)
        assert (identity.role, identity.address) == (role, cloud.instances[f"demo-{role}"]["PrivateIpAddress"])
    authorities = {(tmp_path / role / "ca.pem").read_bytes() for role in NODE_ROLES}
    assert authorities == {cloud.client("s3").get_object(Bucket="jobs", Key="pki/ca.pem")["Body"].read()}
    ca = x509.load_pem_x509_certificate(authorities.pop())
    der = cloud.client("kms").get_public_key(KeyId=cloud.ca_key)["PublicKey"]
    assert ca.public_key() == load_der_public_key(der)


def test_another_version_of_the_function_signs_with_the_same_ca(cloud: Cloud, tmp_path: Path) -> None:
    enrol_as(cloud, "worker", tmp_path / "tls")
    before = (tmp_path / "tls/ca.pem").read_bytes()
    cloud.client("lambda").update_function_code(FunctionName="demo-enrolment", ZipFile=archive())
    enrol_as(cloud, "worker", tmp_path / "tls")
    enrol_as(cloud, "worker", tmp_path / "fresh")
    assert {(tmp_path / place / "ca.pem").read_bytes() for place in ("tls", "fresh")} == {before}


def test_an_instance_of_another_role_cannot_pass_for_this_one(cloud: Cloud, tmp_path: Path) -> None:
    server = cloud.instances["demo-server"]["InstanceId"]
    with pytest.raises(IdentityError, match="must be in Auto Scaling group demo-worker, it is in demo-server"):
        enrol_as(cloud, "worker", tmp_path / "tls", instance=server)


def test_a_role_that_no_node_has_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    worker = cloud.instances["demo-worker"]["InstanceId"]
    with pytest.raises(IdentityError, match="got 'demo-other'") as error:
        enrol(node_config(region=REGION), cloud.node("demo-other", worker), instance_id=worker, tls_dir=tmp_path)
    assert error.value.reason == "unknown_role"


def test_a_stolen_proof_enrols_no_other_key(cloud: Cloud) -> None:
    session = cloud.node("demo-worker", cloud.instances["demo-worker"]["InstanceId"])
    csr = make_csr()
    proof = prove(session, region=REGION, cluster=CLUSTER, csr_sha256="0" * 64)
    proof["headers"][CSR_HEADER] = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
    event = {"csr": csr.public_bytes(Encoding.PEM).decode(), "proof": proof}
    answer = cloud.client("lambda").invoke(FunctionName="demo-enrolment", Payload=json.dumps(event).encode())
    refused = json.loads(answer["Payload"].read())["refused"]
    assert refused["reason"] == "sts_refused"
    assert "(SignatureDoesNotMatch)" in refused["message"]


def test_a_terminated_instance_is_refused(cloud: Cloud, tmp_path: Path) -> None:
    gone = cloud.instances["demo-scheduler"]["InstanceId"]
    cloud.client("autoscaling").set_desired_capacity(AutoScalingGroupName="demo-scheduler", DesiredCapacity=0)
    with pytest.raises(IdentityError, match=f"{gone} must be in Auto Scaling group demo-scheduler, it is in none"):
        enrol_as(cloud, "scheduler", tmp_path / "tls")


def test_kms_signatures_verify_offline(cloud: Cloud) -> None:
    kms = cloud.client("kms")
    message = b"x" * 10000
    kms_verifier(kms, cloud.ca_key)(kms_signer(kms, cloud.ca_key)(message), message)


def test_a_deployment_with_a_second_key_rotates_the_ca(cloud: Cloud, tmp_path: Path) -> None:
    enrol_as(cloud, "worker", tmp_path / "tls")
    before = (tmp_path / "tls/ca.pem").read_bytes()
    new = cloud.client("kms").create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    policy = document(
        {"Action": ["kms:Sign", "kms:GetPublicKey"], "Resource": new},
        {"Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::jobs/pki/ca-2.pem"},
    )
    cloud.client("iam").put_role_policy(RoleName="enrolment", PolicyName="rotation", PolicyDocument=policy)
    rotation = {"HOLDFAST_CA_KEY": new, "HOLDFAST_CA_GENERATION": "2", "HOLDFAST_PREVIOUS_CA_KEY": cloud.ca_key}
    functions = cloud.client("lambda")
    try:
        functions.update_function_configuration(
            FunctionName="demo-enrolment", Environment={"Variables": cloud.variables | rotation}
        )
        enrol_as(cloud, "worker", tmp_path / "tls")  # the old CA signs, and both are trusted on its word
        added = cloud.client("s3").get_object(Bucket="jobs", Key="pki/ca-2.pem")["Body"].read()
        assert (tmp_path / "tls/ca.pem").read_bytes() == before + added
        del rotation["HOLDFAST_PREVIOUS_CA_KEY"]
        functions.update_function_configuration(
            FunctionName="demo-enrolment",
            Environment={"Variables": {**cloud.variables, **rotation}},
        )
        enrol_as(cloud, "worker", tmp_path / "tls")  # the overlap has ended
        assert (tmp_path / "tls/ca.pem").read_bytes() == added
    finally:
        functions.update_function_configuration(
            FunctionName="demo-enrolment", Environment={"Variables": cloud.variables}
        )
