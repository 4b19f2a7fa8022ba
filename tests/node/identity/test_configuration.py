"""The function refuses to start on an environment that the kit would not give it."""

import json
from datetime import timedelta
from typing import Any

import pytest
from configuration import ConfigurationError, RoleSettings, read_settings
from identity_support import ACCOUNT, ENVIRONMENT


def roles(**changes: Any) -> str:
    return json.dumps(json.loads(ENVIRONMENT["HOLDFAST_ROLES"]) | changes)


def test_one_ca_signs_unless_a_rotation_is_on() -> None:
    assert (read_settings(ENVIRONMENT).ca_key, read_settings(ENVIRONMENT).previous_ca_key) == ("ca-key", None)
    rotating = ENVIRONMENT | {"HOLDFAST_CA_GENERATION": "3", "HOLDFAST_PREVIOUS_CA_KEY": "old"}
    settings = read_settings(rotating)
    assert (settings.ca_generation, settings.ca_key, settings.previous_ca_key) == (3, "ca-key", "old")


def test_a_private_ca_takes_the_keys_place() -> None:
    settings = read_settings(ENVIRONMENT | {"HOLDFAST_CA_KEY": "", "HOLDFAST_PRIVATE_CA": PRIVATE_CA})
    assert (settings.ca_key, settings.private_ca) == (None, PRIVATE_CA)


def test_the_kits_environment_is_accepted() -> None:
    settings = read_settings(ENVIRONMENT)
    assert settings.roles["worker"] == RoleSettings("aws", ACCOUNT, "demo-worker", "demo-worker")
    assert settings.certificate_lifetime == timedelta(hours=24)
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HOLDFAST_CERT_HOURS"}
    assert read_settings(environment).certificate_lifetime == timedelta(hours=24)


PRIVATE_CA = f"arn:aws:acm-pca:us-east-1:{ACCOUNT}:certificate-authority/12345678-1234-1234-1234-123456789012"
ARN = f"arn:aws:iam::{ACCOUNT}:role/demo-worker"
REFUSALS = {
    "no cluster": ({"HOLDFAST_CLUSTER": ""}, "HOLDFAST_CLUSTER must be set in the function's environment; deploy"),
    "bad cluster": ({"HOLDFAST_CLUSTER": "A_b"}, "HOLDFAST_CLUSTER must match "),
    "no key": ({"HOLDFAST_CA_KEY": ""}, "HOLDFAST_CA_KEY must be set"),
    "two CAs": (
        {"HOLDFAST_PRIVATE_CA": PRIVATE_CA},
        "HOLDFAST_PRIVATE_CA and HOLDFAST_CA_KEY must not both be set: one CA signs",
    ),
    "not a private CA": (
        {"HOLDFAST_PRIVATE_CA": "arn:aws:kms:x", "HOLDFAST_CA_KEY": ""},
        "HOLDFAST_PRIVATE_CA must be an AWS Private CA's ARN, got 'arn:aws:kms:x'",
    ),
    "a rotation to the first CA": (
        {"HOLDFAST_PREVIOUS_CA_KEY": "old"},
        "HOLDFAST_CA_GENERATION must be between 1 and 99, and at least 2 with HOLDFAST_PREVIOUS_CA_KEY, got '1'",
    ),
    "no generation": ({"HOLDFAST_CA_GENERATION": "0"}, "HOLDFAST_CA_GENERATION must be between 1 and 99, "),
    "no bucket": ({"HOLDFAST_JOBS_BUCKET": ""}, "HOLDFAST_JOBS_BUCKET must be set"),
    "no hours": ({"HOLDFAST_CERT_HOURS": "0"}, "HOLDFAST_CERT_HOURS must be between 1 and 168, got '0'"),
    "many hours": ({"HOLDFAST_CERT_HOURS": "169"}, "HOLDFAST_CERT_HOURS must be between 1 and 168, got '169'"),
    "hours in words": ({"HOLDFAST_CERT_HOURS": "a day"}, "HOLDFAST_CERT_HOURS must be between 1 and 168, got 'a day'"),
    "not JSON": ({"HOLDFAST_ROLES": "{"}, "HOLDFAST_ROLES must map roles to role_arn and group: JSONDecodeError"),
    "a list": ({"HOLDFAST_ROLES": "[]"}, "HOLDFAST_ROLES must map roles to role_arn and group: AttributeError"),
    "no group": ({"HOLDFAST_ROLES": roles(worker={"role_arn": ARN})}, "role_arn and group: KeyError('group')"),
    "not a role": (
        {"HOLDFAST_ROLES": roles(worker={"role_arn": ARN.replace("role/", "user/"), "group": "g"})},
        "HOLDFAST_ROLES.worker must have an IAM role's ARN and a group, got 'arn:aws:iam::111122223333:user/",
    ),
    "a role too many": (
        {"HOLDFAST_ROLES": roles(admin={"role_arn": ARN, "group": "x"})},
        "must have exactly ['scheduler', 'server', 'worker', 'predictor'], got ['admin', 'predictor', ",
    ),
    "two accounts": (
        {"HOLDFAST_ROLES": roles(worker={"role_arn": ARN.replace(ACCOUNT, "999988887777"), "group": "demo-worker"})},
        "HOLDFAST_ROLES must be of one account",
    ),
    "one IAM role for two": (
        {"HOLDFAST_ROLES": roles(server={"role_arn": ARN, "group": "demo-server"})},
        "HOLDFAST_ROLES must have one distinct role for each role",
    ),
    "one group for two": (
        {"HOLDFAST_ROLES": roles(worker={"role_arn": ARN, "group": "demo-server"})},
        "HOLDFAST_ROLES must have one distinct group for each role",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused(case: str) -> None:
    changes, text = REFUSALS[case]
    with pytest.raises(ConfigurationError) as error:
        read_settings(ENVIRONMENT | changes)
    assert text in str(error.value)
