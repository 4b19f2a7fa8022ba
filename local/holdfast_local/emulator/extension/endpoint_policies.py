"""A request that came through a VPC endpoint: held to that endpoint's service and policy, and told to all policies.

AWS PrivateLink Guide, "Control access to VPC endpoints using endpoint policies"; IAM User Guide, "Policy evaluation
logic" and "AWS global condition context keys" (aws:SourceVpce, aws:SourceVpc). `aws:VpcSourceIp` stays unset.
"""

import html
import json
import re
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from holdfast_local.emulator.extension.endpoints import Record, by_source
from holdfast_local.emulator.extension.seams import seam
from holdfast_local.emulator.names import service_names
from holdfast_local.emulator.sources import is_source

_SCOPE = re.compile(r"[^/]+/[0-9]{8}/[a-z0-9-]+/([a-z0-9-]+)/aws4_request")
#: The endpoint that the request being served came through.
_endpoint: ContextVar[Record | None] = ContextVar("holdfast_endpoint", default=None)
#: Whether an endpoint's policy was the reason of the denial being reported, and if so whether it denied explicitly.
_denied: ContextVar[bool | None] = ContextVar("holdfast_endpoint_denied", default=None)


def observe(application: Any) -> Any:
    """Return `application` behind endpoints: what came through one is refused unless it is for that one's service."""
    router = seam("ministack.core.router", "SERVICE_PATTERNS")

    async def observing(scope: Any, receive: Any, send: Any) -> None:
        source = (scope.get("client") or ("",))[0]
        if scope["type"] not in ("http", "websocket") or not source or not is_source(source):
            await application(scope, receive, send)
            return
        endpoint = by_source.get(source)
        targets = router.SERVICE_PATTERNS.get(_service(endpoint), {}).get("target_prefixes", []) if endpoint else []
        reason = _foreign(endpoint, scope, targets) if endpoint else "no such VPC endpoint"
        if reason or scope["type"] != "http":
            await _refuse(scope, send, reason or "a VPC endpoint carries HTTP requests only")
            return
        _endpoint.set(endpoint)
        await application(scope, receive, send)

    return observing


def install() -> None:
    """Evaluate the endpoint's policy beside all others, and set the keys that name the endpoint."""
    evaluator = seam(
        "ministack.core.iam_evaluator",
        "AuthError",
        "EvalContext",
        "EvalResult",
        "enforce",
        "evaluate_resource_policy",
        "resolve_principal",
    )
    actions = seam("ministack.core.iam_actions", "access_denied_response")
    account = seam("ministack.core.responses", "get_account_id").get_account_id
    stock_enforce, stock_response = evaluator.enforce, actions.access_denied_response

    def enforce(
        access_key_id: str, action: str, service: str, region: str, resource_arn: str = "*", service_context: Any = None
    ) -> Any:
        _denied.set(None)
        endpoint = _endpoint.get()
        if endpoint is None:
            return stock_enforce(access_key_id, action, service, region, resource_arn, service_context)
        keys = {"aws:SourceVpce": endpoint["VpcEndpointId"], "aws:SourceVpc": endpoint["VpcId"]}
        refused = stock_enforce(
            access_key_id, action, service, region, resource_arn, {**(service_context or {}), **keys}
        )
        if refused is not None:
            return refused
        principal = evaluator.resolve_principal(access_key_id or "", account())
        known = not isinstance(principal, evaluator.AuthError)
        context = evaluator.EvalContext(
            principal_arn=principal.arn if known else "anonymous",
            principal_type=principal.type if known else "Anonymous",
            principal_account=principal.account if known else "",
            action=action,
            resource_arn=resource_arn,
            region=region,
            service_context={key.lower(): value for key, value in ((service_context or {}) | keys).items()},
            principal_keys=principal.keys if known else {},
        )
        result = evaluator.evaluate_resource_policy(endpoint["PolicyDocument"], context)
        if result.decision == "Allow" and service == _service(endpoint):
            return None
        _denied.set(result.decision == "Deny")
        return evaluator.EvalResult("ImplicitDeny", principal_arn=context.principal_arn)

    def access_denied_response(
        service: str, action: str, principal_arn: str, request_id: str, **more: Any
    ) -> tuple[int, dict[str, str], bytes]:
        status, headers, body = stock_response(service, action, principal_arn, request_id, **more)
        explicit = _denied.get()
        if explicit is None:
            return status, headers, body
        allowing = f"because no identity-based policy allows the {action} action".encode()
        said = b"with an explicit deny in a VPC endpoint policy"
        return status, headers, body.replace(allowing, said if explicit else allowing.replace(_OTHERS, _OURS))

    evaluator.enforce = enforce
    actions.access_denied_response = access_denied_response


_OTHERS, _OURS = b"no identity-based policy", b"no VPC endpoint policy"


def _service(endpoint: Record) -> str:
    return str(endpoint["ServiceName"].split(".", 3)[3])


def _foreign(endpoint: Record, scope: Any, targets: Iterable[str]) -> str:
    """Return why a request is not one for the endpoint's service, or nothing if it is.

    The name that it is for, the service that it is signed for and the operation that it names must all be the
    service's: ministack serves every service at one address and would take any of them.
    """
    service, region = _service(endpoint), endpoint["ServiceName"].split(".")[2]
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get("host", "").lower().removesuffix(":443")
    names = service_names(service, region)
    own = f"{endpoint['VpcEndpointId']}.{service}.{region}.vpce.amazonaws.com"
    if host != own and not any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in names):
        return f"this is {names[0]}, got a request for {host[:200]!r}"
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    authorization = headers.get("authorization", "")
    credential = re.search(r"Credential=([^,\s]+)", authorization)
    scoped = _SCOPE.fullmatch(credential[1] if credential else (query.get("X-Amz-Credential") or [""])[0])
    if scoped is None and (service != "s3" or authorization or scope["method"] not in ("GET", "HEAD")):
        return f"a request to {names[0]} must be signed with Signature Version 4"
    if scoped is not None and scoped[1] != service:
        return f"Credential should be scoped to correct service: '{service}'"
    target = headers.get("x-amz-target")
    if target is not None and not target.startswith(tuple(targets)):
        return f"{names[0]} knows no operation {target[:200]!r}"
    return ""


async def _refuse(scope: Any, send: Any, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    # In both forms that clients read: S3's body, and the other services' header.
    body = f"<Error><Code>AccessDenied</Code><Message>{html.escape(reason)}</Message></Error>".encode()
    host = next((value for name, value in scope["headers"] if name.lower() == b"host"), b"")
    kind = b"application/xml"
    if b"s3." not in host:
        kind, body = b"application/json", json.dumps({"__type": "AccessDeniedException", "message": reason}).encode()
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
