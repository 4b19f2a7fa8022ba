"""A cluster in one process: KMS with real keys, S3's conditional writes, EC2's and Auto Scaling's answers."""

import hashlib
import io
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import certificates
from authority import Authority
from botocore.exceptions import ClientError
from configuration import read_settings
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from proof import StsRequest
from service import Enrolment
from sts import call_sts
from sts_server import Credential, StsServer

from holdfast_node.contract.documents import NodeConfig
from holdfast_node.identity import prove

FUNCTION = Path(certificates.__file__).parent
ACCOUNT = "111122223333"
REGION = "eu-central-1"
CLUSTER = "demo"
INSTANCE = "i-0123456789abcdef0"
ADDRESS = "10.20.0.7"
ROLE_ID = "AROA" + "A" * 17
_LOADER = botocore.session.Session().get_component("data_loader")
ENVIRONMENT = {
    "AWS_REGION": REGION,
    "HOLDFAST_CLUSTER": CLUSTER,
    "HOLDFAST_CA_KEY": "ca-key",
    "HOLDFAST_JOBS_BUCKET": "jobs",
    "HOLDFAST_CERT_HOURS": "24",
    "HOLDFAST_ROLES": json.dumps(
        {
            role: {"role_arn": f"arn:aws:iam::{ACCOUNT}:role/nodes/demo-{role}", "group": f"demo-{role}"}
            for role in ("scheduler", "server", "worker", "predictor")
        }
    ),
}


def new_session(akid: str, secret: str, token: str | None) -> boto3.Session:
    """Return a session that shares its service descriptions, which take most of a client's making."""
    core = botocore.session.Session()
    core.register_component("data_loader", _LOADER)
    return boto3.Session(akid, secret, token, region_name=REGION, botocore_session=core)


def client_error(code: str, operation: str, status: int = 400) -> ClientError:
    """Return what boto3 raises when AWS answers with an error."""
    return ClientError(
        {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        operation,
    )


class Kms:
    """KMS with real EC keys, and its rules for DIGEST."""

    def __init__(self, spec: str = "ECC_NIST_P256", usage: str = "SIGN_VERIFY") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1() if spec == "ECC_NIST_P256" else ec.SECP384R1())
        self.spec, self.usage = spec, usage
        self.calls = 0

    def get_public_key(self, *, KeyId: str) -> dict[str, Any]:  # noqa: N803
        self.calls += 1
        der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {"KeyId": KeyId, "KeySpec": self.spec, "KeyUsage": self.usage, "PublicKey": der}

    def sign(self, *, KeyId: str, Message: bytes, MessageType: str, SigningAlgorithm: str) -> dict[str, Any]:  # noqa: N803
        if (MessageType, SigningAlgorithm) != ("DIGEST", "ECDSA_SHA_256") or len(Message) != 32:
            raise client_error("ValidationException", "Sign")
        return {"KeyId": KeyId, "Signature": self.key.sign(Message, ec.ECDSA(utils.Prehashed(SHA256())))}


class Bucket:
    """S3's `If-None-Match: *`, and its 403 for a missing key to a caller that may not list."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = 0
        self.unlistable = False
        self._lock = threading.Lock()

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        if Key not in self.objects:
            raise client_error("AccessDenied", "GetObject", 403)
        return {"Body": io.BytesIO(self.objects[Key])}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, MaxKeys: int) -> dict[str, Any]:  # noqa: N803
        if self.unlistable:
            raise client_error("AccessDenied", "ListObjectsV2", 403)
        return {"KeyCount": min(MaxKeys, sum(key.startswith(Prefix) for key in self.objects))}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str, IfNoneMatch: str) -> None:  # noqa: N803
        assert IfNoneMatch == "*"
        with self._lock:
            if Key in self.objects:
                raise client_error("PreconditionFailed", "PutObject", 412)
            self.puts += 1
            self.objects[Key] = Body


@dataclass
class Fleet:
    """What Auto Scaling and EC2 say. `groups`: instance → (group, lifecycle); `states`: instance → EC2 state."""

    groups: dict[str, tuple[str, str]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    error: ClientError | None = None

    def describe_auto_scaling_instances(self, *, InstanceIds: list[str]) -> dict[str, Any]:  # noqa: N803
        if self.error:
            raise self.error
        found = [(i, *self.groups[i]) for i in InstanceIds if i in self.groups]
        keys = ("InstanceId", "AutoScalingGroupName", "LifecycleState")
        return {"AutoScalingInstances": [dict(zip(keys, item, strict=True)) for item in found]}

    def describe_instances(self, *, InstanceIds: list[str]) -> dict[str, Any]:  # noqa: N803
        (instance,) = InstanceIds
        if instance not in self.states:
            raise client_error("InvalidInstanceID.NotFound", "DescribeInstances")
        described = {"InstanceId": instance, "State": {"Name": self.states[instance]}}
        if self.states[instance] != "terminated":
            described["PrivateIpAddress"] = ADDRESS
        return {"Reservations": [{"Instances": [described]}]}


class World:
    """One cluster and its enrolment function; `credentials` gives an instance its role's session."""

    def __init__(self, sts: StsServer) -> None:
        self.sts, self.sts_url = sts, sts.url
        self.ca_bundle: str | None = sts.ca_bundle
        sts.credentials.clear()
        sts.requests.clear()
        sts.answer = sts.location = None
        self.kms, self.bucket = Kms(), Bucket()
        self.fleet = Fleet(groups={INSTANCE: ("demo-worker", "InService")}, states={INSTANCE: "running"})
        self.logged: list[dict[str, Any]] = []
        self.clock = lambda: datetime.now(UTC)
        self.session = self.credentials()

    def credentials(
        self, arn: str = f"arn:aws:sts::{ACCOUNT}:assumed-role/demo-worker/{INSTANCE}", **changes: str
    ) -> boto3.Session:
        """Return a session whose calls STS attributes to `arn`."""
        number = len(self.sts.credentials)
        values = {"user_id": f"{ROLE_ID}:{arn.rpartition('/')[2]}", "account": ACCOUNT} | changes
        akid, credential = f"ASIA{number:016d}", Credential(f"secret{number}", f"token+/{number}=", arn, **values)
        self.sts.credentials[akid] = credential
        return new_session(akid, credential.secret, credential.token)

    def enrolment(self) -> Enrolment:
        """Return a fresh enrolment function, as a cold start makes it."""
        settings = read_settings(ENVIRONMENT)
        return Enrolment(
            settings=settings,
            call_sts=self.call_sts,
            autoscaling=self.fleet,
            ec2=self.fleet,
            s3=self.bucket,
            authority=self.authority(),
            clock=lambda: self.clock(),
            log=self.logged.append,
        )

    def authority(self) -> Authority:
        """Return the CA with an empty memory."""
        return Authority(
            kms=self.kms, s3=self.bucket, key_id="ca-key", bucket="jobs", cluster=CLUSTER, log=self.logged.append
        )

    def call_sts(self, request: StsRequest) -> tuple[int, bytes]:
        """Ask the real HTTPS server."""
        return call_sts(self.sts_url, request, ca_bundle=self.ca_bundle)

    def event(self, session: boto3.Session | None = None, csr: x509.CertificateSigningRequest | None = None) -> Any:
        """Return what an honest node sends."""
        csr = csr or make_csr()
        digest = hashlib.sha256(csr.public_bytes(Encoding.DER)).hexdigest()
        proof = prove(session or self.session, region=REGION, cluster=CLUSTER, csr_sha256=digest)
        return {"csr": csr.public_bytes(Encoding.PEM).decode(), "proof": proof}


def make_csr(key: Any = None) -> x509.CertificateSigningRequest:
    """Return a CSR that asks for nothing."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())


def node_config(**changes: Any) -> NodeConfig:
    """Return a worker's constants."""
    values = {
        "cluster": CLUSTER,
        "role": "worker",
        "region": REGION,
        "ports": {"scheduler": 9091, "server": 9092, "worker": 9093},
        "jobs_bucket": "jobs",
        "models_bucket": "models",
        "enrolment_function": "demo-enrolment",
        "job_signing_key": "job-key",
        "model_signing_key": "model-key",
        "log_group": "nodes",
        "file_system_id": "fs-1",
        "access_point_id": "fsap-1",
        "bundle": {"bucket": "assets", "key": "bundle.zip", "sha256": "0" * 64},
    }
    if changes.get("role") == "predictor":
        values["predictions"] = {"job_id": "digits-1"}
    return NodeConfig.parse(json.dumps(values | changes))
