"""S3 objects encrypted with KMS need the key's permission too: reading Decrypt, writing GenerateDataKey.

S3 User Guide, "Using server-side encryption with AWS KMS keys"; HEAD needs no key, because it returns no content.
"""

from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from holdfast_local.emulator.extension.seams import seam

_ACTIONS = {
    "s3:GetObject": "kms:Decrypt",
    "s3:GetObjectVersion": "kms:Decrypt",
    "s3:PutObject": "kms:GenerateDataKey",
}
_KEY_HEADER = "x-amz-server-side-encryption-aws-kms-key-id"
#: HTTP method and object version of the request being served.
_request: ContextVar[tuple[str, str | None]] = ContextVar("holdfast_request", default=("", None))
#: The key permission whose lack was the reason of the denial being reported.
_denied: ContextVar[tuple[str, str] | None] = ContextVar("holdfast_denied", default=None)


def observe(application: Any) -> Any:
    """Return `application` with what the check needs to know of each request, and ministack does not hand on."""

    async def observing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            _request.set((scope["method"], query.get("versionId", [None])[0]))
        await application(scope, receive, send)

    return observing


def install() -> None:
    """Check the key's permission after the object's."""
    evaluator = seam("ministack.core.iam_evaluator", "enforce", "EvalResult")
    actions = seam("ministack.core.iam_actions", "access_denied_response")
    kms = seam("ministack.services.kms", "_resolve_key")
    s3 = seam(
        "ministack.services.s3",
        "_buckets",
        "_object_versions",
        "_bucket_encryption",
        "_stored_sse_headers",
        "_bucket_default_sse_headers",
    )
    account = seam("ministack.core.responses", "get_account_id").get_account_id
    stock_enforce, stock_response = evaluator.enforce, actions.access_denied_response

    def enforce(
        access_key_id: str, action: str, service: str, region: str, resource_arn: str = "*", service_context: Any = None
    ) -> Any:
        _denied.set(None)
        refused = stock_enforce(access_key_id, action, service, region, resource_arn, service_context)
        if refused is not None or service != "s3" or action not in _ACTIONS or _request.get()[0] == "HEAD":
            return refused
        bucket, _, name = resource_arn.removeprefix("arn:aws:s3:::").partition("/")
        key_id = _upload_key(s3, bucket, service_context) if action == "s3:PutObject" else _stored_key(s3, bucket, name)
        key = kms._resolve_key(key_id) if key_id else None
        if key is None:
            return None
        # With an S3 Bucket Key the context names the bucket, without one the object.
        encrypted = resource_arn if not _bucket_key(s3, bucket) else f"arn:aws:s3:::{bucket}"
        context = {
            "kms:ViaService": f"s3.{region}.amazonaws.com",
            "kms:CallerAccount": account(),
            "kms:EncryptionContext:aws:s3:arn": encrypted,
            "kms:EncryptionContextKeys": ["aws:s3:arn"],
        }
        refused = stock_enforce(access_key_id, _ACTIONS[action], "kms", region, key["Arn"], context)
        if isinstance(refused, evaluator.EvalResult):
            _denied.set((_ACTIONS[action], key["Arn"]))
        return refused

    def access_denied_response(service: str, action: str, principal_arn: str, request_id: str, **more: Any) -> Any:
        if service == "s3" and (denied := _denied.get()):
            action, key_arn = denied
            why = "a policy denies it" if more.get("explicit_deny") else "no policy allows it"
            subject = f"User: {principal_arn} is not authorized to perform: {action}"
            more["message"] = f"{subject} on resource: {key_arn} because {why}"
        return stock_response(service, action, principal_arn, request_id, **more)

    evaluator.enforce = enforce
    actions.access_denied_response = access_denied_response


def _upload_key(s3: Any, bucket: str, context: dict[str, Any] | None) -> str | None:
    """Return the key that an upload will be encrypted with: the one it names, else the bucket's default."""
    asked = {name.lower(): value for name, value in (context or {}).items()}
    algorithm = asked.get("s3:x-amz-server-side-encryption")
    if algorithm is None:
        return _key_of(s3._bucket_default_sse_headers(bucket))
    return asked.get(f"s3:{_KEY_HEADER}")


def _stored_key(s3: Any, bucket: str, name: str) -> str | None:
    """Return the key that the requested version of an object is encrypted with, or None if there is none."""
    wanted = _request.get()[1]
    if wanted is None:
        record = (s3._buckets.get(bucket) or {}).get("objects", {}).get(name)
    else:
        versions = s3._object_versions.get((bucket, name)) or []
        record = next((version for version in versions if version["version_id"] == wanted), None)
    return _key_of(s3._stored_sse_headers(record)) if record else None


def _key_of(headers: dict[str, str]) -> str | None:
    return headers.get(_KEY_HEADER)


def _bucket_key(s3: Any, bucket: str) -> bool:
    return "<BucketKeyEnabled>true</BucketKeyEnabled>" in (s3._bucket_encryption.get(bucket) or "")
