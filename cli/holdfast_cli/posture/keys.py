"""Checks of the KMS keys: that they work, and who may use them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_cli.posture.statements import Statement, parse, said, strangers
from holdfast_node.contract.roles import Role

_DENIALS = {
    "another message than a digest": ("StringNotEquals", "kms:MessageType", "DIGEST"),
    "another algorithm": ("StringNotEquals", "kms:SigningAlgorithm", "ECDSA_SHA_256"),
}


@dataclass(frozen=True)
class Key:
    """A key of the cluster: its alias, what KMS says of it, and its policy's statements."""

    alias: str
    metadata: dict[str, Any]
    statements: tuple[Statement, ...]


def _aliases(inventory: Inventory) -> dict[str, str]:
    prefix = f"alias/holdfast/{inventory.name}/"
    return {
        str(item["AliasName"]).removeprefix(prefix): str(item.get("TargetKeyId", ""))
        for item in inventory.reader.every("kms:ListAliases")
        if item["AliasName"].startswith(prefix)
    }


def _key(inventory: Inventory, alias: str, key_id: str) -> Key:
    metadata = (inventory.reader.get("kms:DescribeKey", KeyId=key_id) or {})["KeyMetadata"]
    answer = inventory.reader.get("kms:GetKeyPolicy", KeyId=key_id, PolicyName="default") or {}
    return Key(alias, metadata, parse(answer.get("Policy"), f"the policy of key {alias}"))


def _faults(inventory: Inventory, key: Key) -> Iterator[str]:
    """Yield what is wrong with any key, whatever it is for."""
    alias, account = key.alias, inventory.account
    if key.metadata["KeyState"] != "Enabled":
        yield f"key {alias} is {key.metadata['KeyState']}"
    if key.metadata.get("KeyManager") != "CUSTOMER":
        yield f"key {alias} is managed by {key.metadata.get('KeyManager')}"
    if key.metadata["KeyId"] not in {name.rpartition("/")[2] for name in inventory.of("KMS::Key")}:
        yield f"alias {alias} leads to a key that is not the cluster's"
    for statement in key.statements:
        outside = [
            name
            for name in strangers(statement, account)
            if not name.endswith(".amazonaws.com") or not statement.conditions
        ]
        if outside:
            yield f"key {alias}: {said(statement)} admits {', '.join(outside)}"
        elif statement.allows and not statement.conditions and not _delegates(statement, account):
            yield f"key {alias}: {said(statement)} admits {', '.join(statement.principals)} past the account's policies"


def _delegates(statement: Statement, account: str) -> bool:
    """Whether a statement only hands the decision to the account's own policies."""
    return all(name == account or name.endswith(f"::{account}:root") for name in statement.principals)


def look_at_data_key(inventory: Inventory) -> Outcome:
    """Look at the key that encrypts data at rest."""
    arn = inventory.data_key
    key = _key(inventory, "data", arn)
    problems = list(_faults(inventory, key))
    rotation = inventory.reader.get("kms:GetKeyRotationStatus", KeyId=arn) or {}
    if not rotation.get("KeyRotationEnabled"):
        problems.append("key data is not rotated")
    target = _aliases(inventory).get("data")
    if target != key.metadata["KeyId"]:
        problems.append(f"the alias of the data key leads to {target or 'no key'}")
    return Outcome(arn, tuple(problems))


def look_at_signing_keys(inventory: Inventory) -> Outcome:
    """Look at the keys that sign job documents and models."""
    cluster = inventory.cluster
    jobs, models = (
        _key(inventory, alias, arn)
        for alias, arn in (("jobs", cluster.job_signing_key), ("models", cluster.model_signing_key))
    )
    problems = [fault for key in (jobs, models) for fault in (*_faults(inventory, key), *_usage_faults(inventory, key))]
    problems += _signer_faults(inventory, models, inventory.role_name(Role.WORKER))
    return Outcome(f"{cluster.job_signing_key}, {cluster.model_signing_key}", tuple(problems))


def look_at_authority(inventory: Inventory) -> Outcome:
    """Look at the key of the cluster's own CA, or of both while it rotates."""
    aliases = {alias: key for alias, key in _aliases(inventory).items() if alias == "ca" or alias.startswith("ca-")}
    if not aliases:
        # Which one it is, is in an environment that only who may decrypt with the data key can read.
        raise Unreadable(f"no key alias/holdfast/{inventory.name}/ca: an AWS Private CA is not looked at")
    signer = str(_function(inventory)["Role"]).rpartition("/")[2]
    problems: list[str] = []
    for alias, key_id in aliases.items():
        key = _key(inventory, alias, key_id)
        problems += [*_faults(inventory, key), *_usage_faults(inventory, key), *_signer_faults(inventory, key, signer)]
    return Outcome(", ".join(f"{alias}: {key}" for alias, key in sorted(aliases.items())), tuple(problems))


def _function(inventory: Inventory) -> dict[str, Any]:
    (name,) = inventory.of("Lambda::Function")
    return inventory.reader.get("lambda:GetFunctionConfiguration", FunctionName=name) or {}


def _usage_faults(inventory: Inventory, key: Key) -> Iterator[str]:
    for grant in inventory.reader.every("kms:ListGrants", KeyId=key.metadata["KeyId"]):
        yield f"key {key.alias}: a grant lets {grant.get('GranteePrincipal')} {', '.join(grant.get('Operations', ()))}"
    if (key.metadata.get("KeySpec"), key.metadata.get("KeyUsage")) != ("ECC_NIST_P256", "SIGN_VERIFY"):
        yield f"key {key.alias} is a {key.metadata.get('KeySpec')} key for {key.metadata.get('KeyUsage')}"


def _signer_faults(inventory: Inventory, key: Key, role: str) -> Iterator[str]:
    """Yield which denials the policy of a key lacks that one role alone signs with."""
    place = f"arn:{inventory.partition}"
    signers = (
        f"{place}:iam::{inventory.account}:role/{role}",
        f"{place}:sts::{inventory.account}:assumed-role/{role}/*",
    )
    wanted = {f"whoever is not the role {role}": ("ArnNotLike", "aws:PrincipalArn", *signers), **_DENIALS}
    denials = [item for item in key.statements if not item.allows and item.public and "kms:Sign" in item.actions]
    for what, condition in wanted.items():
        if not any(len(item.conditions) == 1 and item.has_condition(*condition) for item in denials):
            yield f"key {key.alias}: its policy does not deny kms:Sign to {what}"


CHECKS = (
    Check(
        name="data-key",
        row="B4",
        claim="the key of data at rest is enabled, rotated, and used by this account and the services it needs",
        remedy="enable the key and its rotation, and put its policy back as the foundation stack has it; cancel its "
        "deletion if it is pending, or everything under it is lost",
        look=look_at_data_key,
    ),
    Check(
        name="signing-keys",
        row="B5",
        claim="the keys that sign jobs and models are enabled, and nobody but a worker's role signs models",
        remedy="enable the key and put its policy back as the foundation stack has it; do not trust models that were "
        "signed meanwhile",
        look=look_at_signing_keys,
    ),
    Check(
        name="authority-key",
        row="T1",
        claim="the CA's key is enabled, and nobody but the enrolment function's role signs certificates",
        remedy="enable the key and put its policy back as the foundation stack has it; if somebody may have signed, "
        "rotate the CA (docs/ca-rotation.md)",
        look=look_at_authority,
    ),
)
