"""botocore's exceptions as one message each: what failed and what to do about it."""

import re
import sys

from holdfast_cli.errors import AwsError
from holdfast_cli.terminal import safe

_ACTION = re.compile(r"not authorized to perform: ([A-Za-z0-9-]+:[A-Za-z0-9*]+)")
_LOG_IN = "log in again (`aws sso login`), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "403"}
_THROTTLED = {
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}


def explain(error: Exception) -> AwsError | None:
    """Return botocore's exception as an error with a remedy, or None if it is not one of botocore's."""
    if "botocore" not in sys.modules:
        return None
    from botocore import exceptions as b

    if isinstance(error, b.ClientError):
        return AwsError(_client_error(error))
    if isinstance(error, b.SSOTokenLoadError | b.UnauthorizedSSOTokenError | b.TokenRetrievalError):
        return AwsError(f"the AWS login has expired; {_LOG_IN}")
    if isinstance(error, b.NoCredentialsError | b.PartialCredentialsError | b.CredentialRetrievalError):
        return AwsError(f"no usable AWS credentials found; {_LOG_IN}; or use --local for the embedded AWS")
    if isinstance(error, b.ProfileNotFound):
        return AwsError(f"{_sentence(error)}; correct AWS_PROFILE or run `aws configure --profile NAME`")
    if isinstance(error, b.NoRegionError):
        return AwsError("no AWS region is set; use --region REGION or set AWS_REGION")
    if isinstance(error, b.SSLError):
        return AwsError(
            f"the certificate of {_endpoint(error)} was not accepted; check AWS_CA_BUNDLE and the clock of this machine"
        )
    if isinstance(error, b.HTTPClientError | b.ConnectionError):
        return AwsError(
            f"cannot reach {_endpoint(error)} ({type(error).__name__}); check the network, --region and "
            "AWS_ENDPOINT_URL; with --local, check that `holdfast local up` is running"
        )
    if isinstance(error, b.BotoCoreError):
        return AwsError(f"AWS call failed: {_sentence(error)}")
    return None


def code_of(error: Exception) -> str:
    """Return the error code of a ClientError; empty for anything else."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def denied(error: Exception) -> bool:
    """Return whether AWS refused a call because these credentials may not make it."""
    return code_of(error) in _DENIED


def _client_error(error: Exception) -> str:
    operation = str(getattr(error, "operation_name", "AWS call"))
    code = code_of(error)
    response: dict[str, dict[str, object]] = getattr(error, "response", {})
    message = str(response.get("Error", {}).get("Message", ""))
    if code in _EXPIRED:
        return f"the AWS credentials have expired; {_LOG_IN}"
    if code in _BAD_CREDENTIALS:
        return f"AWS does not accept these credentials ({code}); {_LOG_IN}; with --local, check that it is running"
    if code in _DENIED:
        action = match[1] if (match := _ACTION.search(message)) else operation
        return f"access denied: these credentials may not {action}; ask for that permission, or use another AWS_PROFILE"
    if code in _THROTTLED:
        return f"AWS throttled {operation} after several attempts ({code}); wait a minute and try again"
    if code == "NoSuchBucket":
        return "a bucket of this cluster is gone (NoSuchBucket); deploy it again with `cdk deploy --all`"
    return safe(f"AWS refused {operation}: {code}: {message}".strip(": "))


def _endpoint(error: Exception) -> str:
    values = getattr(error, "kwargs", {})
    return safe(values.get("endpoint_url") or "AWS")


def _sentence(error: Exception) -> str:
    return safe(" ".join(str(error).split())).rstrip(".")
