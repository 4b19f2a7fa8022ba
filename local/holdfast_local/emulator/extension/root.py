"""Root is one random key whose signature is checked, and nothing is reachable without a signature.

ministack takes `test`, every 12-digit key, an empty key and unsigned S3 requests for root, without looking at a
signature, and serves administration endpoints (reset, configuration, messages) to everyone.
"""

import dataclasses
import hashlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from holdfast_local.emulator.extension.seams import SeamError, seam

_MINIMUM_SECRET_LENGTH = 32
#: Outside the AWS APIs only these answer: health, and CloudFormation's callbacks, whose last part is an unguessable
#: token. Bucket names never start with an underscore, so this hides no object.
_OPEN_PATHS = ("/_ministack/health", "/_ministack/ready", "/_ministack/cfn-response/", "/_ministack/cfn-signal/")
#: ministack's shared instance metadata service and container credentials.
_METADATA_PATHS = ("/latest/", "/v2/credentials")
_CLOSED = b"closed in the embedded AWS; use the AWS APIs\n"


def install() -> None:
    """Make the configured key the only root key, and check it like every other."""
    evaluator = seam(
        "ministack.core.iam_evaluator",
        "is_root_access_key",
        "_is_root_key",
        "parse_policy_document",
        "resolve_principal",
    )
    tokens = seam("ministack.services.sts", "is_root_access_key", "register_session")
    root_key, root_secret = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    if root_key == "test" or root_key.isdigit() or len(root_secret) < _MINIMUM_SECRET_LENGTH:
        raise SeamError("the embedded AWS needs a random root key; start it through process.Emulator")

    def is_root(access_key_id: str) -> bool:
        return access_key_id == root_key

    evaluator.is_root_access_key = tokens.is_root_access_key = is_root
    # `_is_root_key` decides only whether a signature check is skipped.
    evaluator._is_root_key = lambda access_key_id: False
    _install_root_policies(evaluator)
    _install_function_sessions(tokens)


def _install_root_policies(evaluator: Any) -> None:
    """Hold root to the denials of bucket and key policies, as AWS does; ministack evaluates nothing for root."""
    everything = evaluator.parse_policy_document({"Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
    stock = evaluator.resolve_principal

    def resolve_principal(*request: Any, **named: Any) -> Any:
        principal = stock(*request, **named)
        if getattr(principal, "type", None) == "Root":
            return dataclasses.replace(principal, policies=[everything])
        return principal

    evaluator.resolve_principal = resolve_principal


def _install_function_sessions(tokens: Any) -> None:
    """Give functions session keys that nobody can compute: ministack derives them from public ARNs alone."""
    runtime = seam("ministack.core.lambda_runtime", "execution_credentials", "_account_region_from_function_config")
    functions = seam("ministack.services.lambda_svc", "execution_credentials")
    pepper = secrets.token_bytes(32)

    def execution_credentials(config: dict[str, Any]) -> dict[str, str]:
        account, _region = runtime._account_region_from_function_config(config)
        role_arn, function_arn = config.get("Role", ""), config.get("FunctionArn", "")
        role = role_arn.rsplit("/", 1)[-1]
        session = config.get("FunctionName", "function")[:64]

        def derive(use: str) -> str:
            return hmac.new(pepper, f"{use}:{function_arn}:{role_arn}".encode(), hashlib.sha256).hexdigest()

        key, secret, token = f"ASIA{derive('key')[:16].upper()}", derive("secret"), derive("token")
        tokens.register_session(
            key,
            {
                "Arn": f"arn:aws:sts::{account}:assumed-role/{role}/{session}",
                "UserId": f"{role}:{session}",
                "SecretAccessKey": secret,
                "SessionToken": token,
            },
        )
        return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": token}

    runtime.execution_credentials = functions.execution_credentials = execution_credentials


def guard(
    application: Callable[[Any, Any, Any], Awaitable[None]],
) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return `application` with ministack's administration and metadata endpoints closed."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        closed = path.startswith("/_") and not path.startswith(_OPEN_PATHS)
        if scope["type"] in ("http", "websocket") and (closed or path.startswith(_METADATA_PATHS)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_CLOSED))]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _CLOSED})
            return
        await application(scope, receive, send)

    return guarded
