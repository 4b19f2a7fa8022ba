"""The function's constants, from the environment that the kit gives it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from names import CLUSTER_PATTERN, ROLES

_ROLE_ARN = re.compile(r"arn:(aws[a-z-]*):iam::([0-9]{12}):role/(?:[\x21-\x7e]*/)?([\w+=,.@-]{1,64})")
_PRIVATE_CA_ARN = re.compile(r"arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:[0-9]{12}:certificate-authority/[0-9a-f-]{36}")
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
    jobs_bucket: str
    roles: Mapping[str, RoleSettings]
    certificate_lifetime: timedelta
    ca_key: str | None
    ca_generation: int
    previous_ca_key: str | None
    private_ca: str | None


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings in `environment`.

    `HOLDFAST_ROLES` is JSON: `{"worker": {"role_arn": "arn:…", "group": "<Auto Scaling group>"}, …}` for each of the
    roles, all in the account that the function serves. `HOLDFAST_CERT_HOURS` defaults to 24.
    `HOLDFAST_CA_KEY` is the key of the CA's generation `HOLDFAST_CA_GENERATION` (default 1), `HOLDFAST_PREVIOUS_CA_KEY`
    that of the one before it while a rotation lasts; or `HOLDFAST_PRIVATE_CA` is an AWS Private CA's ARN.

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
        jobs_bucket=_require(environment, "HOLDFAST_JOBS_BUCKET"),
        roles=_read_roles(_require(environment, "HOLDFAST_ROLES")),
        certificate_lifetime=timedelta(hours=int(hours)),
        **_read_authority(environment),
    )


def _read_authority(environment: Mapping[str, str]) -> dict[str, Any]:
    own, previous, private = (
        environment.get(name) or None for name in ("HOLDFAST_CA_KEY", "HOLDFAST_PREVIOUS_CA_KEY", "HOLDFAST_PRIVATE_CA")
    )
    if private is None:
        own = _require(environment, "HOLDFAST_CA_KEY")
    elif own or previous:
        raise ConfigurationError("HOLDFAST_PRIVATE_CA and HOLDFAST_CA_KEY must not both be set: one CA signs")
    elif not _PRIVATE_CA_ARN.fullmatch(private):
        raise ConfigurationError(f"HOLDFAST_PRIVATE_CA must be an AWS Private CA's ARN, got {private!r}")
    generation = environment.get("HOLDFAST_CA_GENERATION", "1")
    if not re.fullmatch("[1-9][0-9]?", generation) or (previous and generation == "1"):
        raise ConfigurationError(
            f"HOLDFAST_CA_GENERATION must be between 1 and 99, and at least 2 with HOLDFAST_PREVIOUS_CA_KEY, "
            f"got {generation!r}"
        )
    return {"ca_key": own, "ca_generation": int(generation), "previous_ca_key": previous, "private_ca": private}


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
