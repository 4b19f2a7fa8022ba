"""Rules of the keys: what each is for, and whom its own policy admits."""

import re
from collections.abc import Iterator
from typing import Any

from tests.kit.posture.model import (
    ACCOUNT,
    ANYONE,
    ROOT,
    Problem,
    Resource,
    Templates,
    actions,
    allowed,
    denies,
    expect,
    label,
    wrong,
)
from tests.kit.support import as_list

KEY, ROLE = "AWS::KMS::Key", "AWS::IAM::Role"
#: Principals other than the account, and what they do with the data key.
_LOGS = re.compile(r"logs\.[a-z0-9-]+\.amazonaws\.com")
_USE = {"kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"}
_VOLUMES = _USE | {"kms:GenerateDataKeyWithoutPlaintext"}
_AUTO_SCALING = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"


def keys_admit_this_account(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        for statement in allowed(key.at("KeyPolicy")):
            principal, conditions = statement.get("Principal"), statement.get("Condition", {})
            caller = conditions.get("StringEquals", {}).get("kms:CallerAccount")
            role = conditions.get("ArnEquals", {}).get("aws:PrincipalArn")
            own = principal == ANYONE and (caller, role) == (ACCOUNT, _AUTO_SCALING)
            if not (own or principal == ROOT or (isinstance(principal, dict) and set(principal) == {"Service"})):
                yield wrong(key, f"principals of {label(statement)}", principal, "this account's, by condition too")


def keys_let_others_do_little(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        for statement in allowed(key.at("KeyPolicy")):
            if statement.get("Principal") != ROOT and not _is_little(statement):
                got = (statement.get("Principal"), actions(statement), statement.get("Condition"))
                yield wrong(key, f"what {label(statement)} allows", got, "what logs and volumes need, and where")


def _is_little(statement: dict[str, Any]) -> bool:
    """Whether a grant of a key is the one of CloudWatch Logs, of log delivery, or of Auto Scaling."""
    does, conditions = {*actions(statement)}, statement.get("Condition", {})
    service = str((statement.get("Principal") or {}).get("Service"))
    if _LOGS.fullmatch(service):
        groups = as_list(conditions.get("ArnLike", {}).get("kms:EncryptionContext:aws:logs:arn", []))
        ours = [f":{ACCOUNT}:log-group:/" in group for group in groups]
        return does <= _USE and bool(ours) and all(ours)
    if service == "delivery.logs.amazonaws.com":
        source = str(conditions.get("StringLike", {}).get("kms:EncryptionContext:SourceArn"))
        ours = [ACCOUNT in source, conditions.get("StringEquals") == {"aws:SourceAccount": ACCOUNT}]
        return does == {"kms:Decrypt"} and all(ours)
    if does == {"kms:CreateGrant"}:
        return bool(conditions.get("Bool") == {"kms:GrantIsForAWSResource": "true"})
    return statement.get("Principal") == ANYONE and does <= _VOLUMES


def keys_are_for_one_purpose(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        encrypts = key.name in ("FoundationKeysData", "FoundationSessionsKey")
        wanted = (None, None) if encrypts else ("SIGN_VERIFY", "ECC_NIST_P256")
        if (got := (key.at("KeyUsage"), key.at("KeySpec"))) != wanted:
            yield wrong(key, "KeyUsage and KeySpec", got, f"{wanted}")


def keys_are_made_and_stay_in_kms(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        yield from expect(key, None, "Origin")
        yield from expect(key, None, "MultiRegion")


def _signer(templates: Templates, key: Resource) -> str | None:
    """Return the one role that signs with a key; None if that is left to the account's policies."""
    if "CertificateAuthority" in key.name:
        return "<FoundationEnrolmentRole>"
    if key.name == "FoundationKeysModelSigning":
        workers = [role for role in templates.of(ROLE) if role.name == "ClusterWorkerRole"]
        return str(workers[0].at("RoleName")) if workers else ""
    return None


def signing_keys_refuse_other_signers(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        if (role := _signer(templates, key)) is None:
            continue
        signer = [f"arn:aws:iam::{ACCOUNT}:role/{role}", f"arn:aws:sts::{ACCOUNT}:assumed-role/{role}/*"]
        for condition in (
            {"ArnNotLike": {"aws:PrincipalArn": signer}},
            {"StringNotEquals": {"kms:MessageType": "DIGEST"}},
            {"StringNotEquals": {"kms:SigningAlgorithm": "ECDSA_SHA_256"}},
        ):
            wanted = {"Action": "kms:Sign", "Resource": "*", "Condition": condition}
            if not denies(key.at("KeyPolicy"), wanted):
                yield wrong(key, f"a denial of kms:Sign where {condition}", None, "in the key's policy")


def keys_that_encrypt_rotate(templates: Templates) -> Iterator[Problem]:
    for key in templates.of(KEY):
        if key.at("KeyUsage") in (None, "ENCRYPT_DECRYPT"):
            yield from expect(key, True, "EnableKeyRotation")


RULES = (
    keys_admit_this_account,
    keys_let_others_do_little,
    keys_are_for_one_purpose,
    keys_are_made_and_stay_in_kms,
    signing_keys_refuse_other_signers,
    keys_that_encrypt_rotate,
)
