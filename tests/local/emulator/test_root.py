import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import botocore
import pytest
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from .conftest import Cloud, allow, unique

CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "sts": ("sts", lambda client: client.get_caller_identity()),
    "iam": ("iam", lambda client: client.list_users()),
    "kms": ("kms", lambda client: client.list_keys()),
    "s3 list": ("s3", lambda client: client.list_buckets()),
    "s3 get": ("s3", lambda client: client.get_object(Bucket="closed-bucket", Key="secret")),
    "s3 put": ("s3", lambda client: client.put_object(Bucket="closed-bucket", Key="secret", Body=b"forged")),
}
FORGERIES: dict[str, dict[str, str] | None] = {
    "the well-known test key": {"access_key_id": "test", "secret_access_key": "test"},
    "an account id as key": {"access_key_id": "000000000000", "secret_access_key": "test"},
    "another account id as key": {"access_key_id": "123456789012", "secret_access_key": "test"},
    "the root key with another secret": {"access_key_id": "ROOT", "secret_access_key": "x" * 43},
    "no signature": None,
}
CODES = (
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "AccessDenied",
)


@pytest.fixture(scope="module", autouse=True)
def closed_bucket(cloud: Cloud) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="closed-bucket")
    s3.put_object(Bucket="closed-bucket", Key="secret", Body=b"content")


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("call", CALLS)
def test_forged_root_is_refused(cloud: Cloud, refused: Any, call: str, forgery: str) -> None:
    credentials = FORGERIES[forgery]
    more = {}
    if credentials is None:
        more["config"] = Config(signature_version=botocore.UNSIGNED)
    elif credentials["access_key_id"] == "ROOT":
        credentials = credentials | {"access_key_id": cloud.environment["AWS_ACCESS_KEY_ID"]}
    service, do = CALLS[call]
    with refused(*CODES):
        do(cloud.client(service, credentials, **more))


@pytest.mark.parametrize("call", CALLS)
def test_root_with_its_signature_is_allowed(cloud: Cloud, call: str) -> None:
    service, do = CALLS[call]
    do(cloud.client(service))


def test_session_without_its_token_is_refused(cloud: Cloud, refused: Any) -> None:
    session = cloud.session(allow("iam:ListUsers"))
    cloud.client("iam", session).list_users()
    session.pop("session_token")
    with refused(*CODES):
        cloud.client("iam", session).list_users()


def test_presigned_s3_link_holds_for_its_object_only(cloud: Cloud) -> None:
    link = cloud.client("s3").generate_presigned_url("get_object", Params={"Bucket": "closed-bucket", "Key": "secret"})
    assert get(cloud, link, {})[0] == 200
    assert get(cloud, link.replace("/secret?", "/other?"), {})[0] == 403


PROOF = {"x-holdfast-csr-sha256": "ab" * 32, "x-holdfast-cluster": "demo"}
CHANGES: dict[str, dict[str, str]] = {
    "another request's hash": PROOF | {"x-holdfast-csr-sha256": "cd" * 32},
    "another cluster": PROOF | {"x-holdfast-cluster": "other"},
    "a missing header": {"x-holdfast-cluster": "demo"},
    "no headers": {},
}


def presigned_identity(cloud: Cloud, session: dict[str, str]) -> str:
    credentials = Credentials(session["access_key_id"], session["secret_access_key"], session["session_token"])
    url = cloud.environment["AWS_ENDPOINT_URL"] + "/?Action=GetCallerIdentity&Version=2011-06-15"
    request = AWSRequest("GET", url, headers=dict(PROOF))
    SigV4QueryAuth(credentials, "sts", "us-east-1", expires=60).add_auth(request)
    return str(request.prepare().url)


def get(cloud: Cloud, url: str, headers: dict[str, str]) -> tuple[int, str]:
    trust = ssl.create_default_context(cafile=cloud.environment["AWS_CA_BUNDLE"])
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5, context=trust) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_identity_proof_names_the_role_session_that_signed_it(cloud: Cloud) -> None:
    status, body = get(cloud, presigned_identity(cloud, cloud.session()), PROOF)
    assert status == 200
    assert "assumed-role/role-" in body
    assert "/test</Arn>" in body


@pytest.mark.parametrize("change", CHANGES)
def test_identity_proof_with_a_changed_header_is_refused(cloud: Cloud, change: str) -> None:
    status, body = get(cloud, presigned_identity(cloud, cloud.session()), CHANGES[change])
    assert status == 403
    assert "SignatureDoesNotMatch" in body


def test_identity_proof_with_a_changed_signature_is_refused(cloud: Cloud) -> None:
    url = presigned_identity(cloud, cloud.session())
    last = "0" if url[-1] != "0" else "1"
    assert get(cloud, url[:-1] + last, PROOF)[0] == 403


def test_identity_proof_without_its_session_token_is_refused(cloud: Cloud) -> None:
    url = presigned_identity(cloud, cloud.session())
    parts = [part for part in url.split("&") if not part.startswith("X-Amz-Security-Token")]
    assert get(cloud, "&".join(parts), PROOF)[0] == 403


def test_policy_that_demands_tls_is_met(cloud: Cloud) -> None:
    bucket = unique("tls-only")
    cloud.client("s3").create_bucket(Bucket=bucket)
    session = cloud.session(allow("s3:*", "*", Bool={"aws:SecureTransport": "true"}))
    cloud.client("s3", session).list_objects_v2(Bucket=bucket)


def test_policy_that_demands_no_tls_is_not_met(cloud: Cloud, refused: Any) -> None:
    bucket = unique("tls-only")
    cloud.client("s3").create_bucket(Bucket=bucket)
    session = cloud.session(allow("s3:*", "*", Bool={"aws:SecureTransport": "false"}))
    with refused("AccessDenied"):
        cloud.client("s3", session).list_objects_v2(Bucket=bucket)
