"""Condition keys that ministack leaves unset: of KMS requests, and of the encryption that an S3 upload asks for.

Names and meaning: AWS Service Authorization Reference, "AWS KMS" and "Amazon S3".
"""

import json
from typing import Any

from holdfast_local.emulator.extension.seams import seam

_KMS_FIELDS = ("SigningAlgorithm", "MessageType", "EncryptionAlgorithm", "MacAlgorithm", "KeySpec", "KeyUsage")
_UPLOAD_HEADERS = (
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-customer-algorithm",
)


def install() -> None:
    """Add the keys to the context in which policies are evaluated."""
    actions = seam("ministack.core.iam_actions", "request_tag_context", "s3_service_context")
    kms = seam("ministack.services.kms", "_resolve_key", "_aliases")
    responses = seam("ministack.core.responses", "get_account_id")
    tags, uploads = actions.request_tag_context, actions.s3_service_context

    def request_tag_context(service: str, action: str, body: bytes, parameters: Any) -> dict[str, Any]:
        context: dict[str, Any] = tags(service, action, body, parameters)
        if service == "kms":
            request = _json(body)
            context |= _kms_keys(request) | {"kms:CallerAccount": responses.get_account_id()}
            context |= _alias_keys(kms, request.get("KeyId"))
        return context

    def s3_service_context(action: str, query: Any, path: str = "", headers: Any = None) -> dict[str, Any]:
        context: dict[str, Any] = uploads(action, query, path, headers)
        if action == "s3:PutObject":
            context |= {f"s3:{name}": headers[name] for name in _UPLOAD_HEADERS if headers and headers.get(name)}
        return context

    actions.request_tag_context = request_tag_context
    actions.s3_service_context = s3_service_context


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _kms_keys(request: dict[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = {f"kms:{name}": request[name] for name in _KMS_FIELDS if name in request}
    if encryption := request.get("EncryptionContext"):
        context |= {f"kms:EncryptionContext:{name}": value for name, value in encryption.items()}
        context["kms:EncryptionContextKeys"] = list(encryption)
    return context


def _alias_keys(kms: Any, key_id: object) -> dict[str, Any]:
    if not isinstance(key_id, str):
        return {}
    context: dict[str, Any] = {}
    if "alias/" in key_id:
        context["kms:RequestAlias"] = key_id[key_id.index("alias/") :]
    record = kms._resolve_key(key_id)
    if record:
        # Stored as alias ARN to key id.
        names = [arn.rpartition(":")[2] for arn, target in kms._aliases.items() if target == record["KeyId"]]
        context["kms:ResourceAliases"] = names
    return context
