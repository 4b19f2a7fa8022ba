"""The function's constants, from the environment that the kit gives it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from names import CLUSTER_PATTERN, ROLES

_ROLE_ARN = re.compile(r"arn:(aws[a-z-]*):iam::([0-9]{12}):role/(?:[\x21-\x7e]*/)?([\w+=,.@-]{1,64})")
MAX_CERTIFICATE_HOURS = 168


class ConfigurationError(Exception):
    """The function's environment is not what the kit gives it; the message names the variable."""


@dataclass(frozen=True)
class RoleSettings:
    """A node role's IAM role, in parts, and its Auto Scaling group."""

    partition: str
    account: str
    role: str
    group: str


@dataclass(frozen=True)
class Settings:
    """The function's constants."""

    cluster: str
    region: str
    ca_key: str
    jobs_bucket: str
    roles: Mapping[str, RoleSettings]
    certificate_lifetime: timedelta


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment`.

    `HOLDFAST_ROLES` is JSON: `{"worker": {"role_arn": "arn:…", "group": "<Auto Scaling group>"}, …}` for each of the
    roles, all in the account that the function serves. `HOLDFAST_CERT_HOURS` defaults to 24.

    Raises:
        ConfigurationError: a variable is missing or impossible.
    """
    cluster = _require(environment, "HOLDFAST_CLUSTER")
    if not CLUSTER_PATTERN.fullmatch(cluster):
        raise ConfigurationError(f"HOLDFAST_CLUSTER must match {CLUSTER_PATTERN.pattern}, got {cluster!r}")
    hours = environment.get("HOLDFAST_CERT_HOURS", "24")
    if not re.fullmatch("[0-9]{1,4}", hours) or not 1 <= int(hours) <= MAX_CERTIFICATE_HOURS:
        raise ConfigurationError(f"HOLDFAST_CERT_HOURS must be between 1 and {MAX_CERTIFICATE_HOURS}, got {hours!r}")
    return Settings(
        cluster=cluster,
        region=_require(environment, "AWS_REGION"),
        ca_key=_require(environment, "HOLDFAST_CA_KEY"),
        jobs_bucket=_require(environment, "HOLDFAST_JOBS_BUCKET"),
        roles=_read_roles(_require(environment, "HOLDFAST_ROLES")),
        certificate_lifetime=timedelta(hours=int(hours)),
    )


def _require(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise ConfigurationError(f"{name} must be set in the function's environment; deploy the foundation stack again")
    return value


def _read_roles(text: str) -> dict[str, RoleSettings]:
    try:
        value = json.loads(text)
        roles = {name: _read_role(name, item["role_arn"], item["group"]) for name, item in value.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"HOLDFAST_ROLES must map roles to role_arn and group: {error!r}") from None
    if set(roles) != set(ROLES):
        raise ConfigurationError(f"HOLDFAST_ROLES must have exactly {list(ROLES)}, got {sorted(roles)}")
    if len({(role.partition, role.account) for role in roles.values()}) != 1:
        raise ConfigurationError("HOLDFAST_ROLES must be of one account")
    for field in ("role", "group"):
        if len({getattr(role, field) for role in roles.values()}) != len(ROLES):
            raise ConfigurationError(f"HOLDFAST_ROLES must have one distinct {field} for each role")
    return roles


def _read_role(name: str, arn: str, group: str) -> RoleSettings:
    match = _ROLE_ARN.fullmatch(arn)
    if not match or not isinstance(group, str) or not group:
        raise ConfigurationError(
            f"HOLDFAST_ROLES.{name} must have an IAM role's ARN and a group, got {arn!r}, {group!r}"
        )
    return RoleSettings(partition=match[1], account=match[2], role=match[3], group=group)
