"""The function ships alone; what it restates must be the contract's."""

import sys

import certificates
import configuration
import names
import private_ca
import proof
import pytest
import refusal
import signing_request
from identity_support import FUNCTION

from holdfast_node import identity, issued
from holdfast_node.contract import layout, roles

CLUSTER, INSTANCE = "demo", "i-0123456789abcdef0"


@pytest.mark.parametrize("role", roles.NODE_ROLES)
@pytest.mark.parametrize("name", ["role_name", "node_name", "spiffe_id"])
def test_a_certificates_names_are_the_contracts(name: str, role: roles.NodeRole) -> None:
    arguments = (CLUSTER, role) if name == "role_name" else (CLUSTER, role, INSTANCE)
    assert getattr(names, name)(*arguments) == getattr(roles, name)(*arguments)


def test_constants_are_the_contracts() -> None:
    assert tuple(role.value for role in roles.NODE_ROLES) == names.ROLES
    assert names.DOMAIN == roles.DOMAIN
    assert names.CLUSTER_PATTERN == roles.CLUSTER_PATTERN
    assert names.INSTANCE_ID_PATTERN == roles.INSTANCE_ID_PATTERN
    assert [names.ca_certificate_key(n) for n in (1, 2)] == [layout.JobsBucket.ca_certificate(n) for n in (1, 2)]
    assert names.DENIED_PREFIX + f"{INSTANCE}.json" == layout.JobsBucket.denial(INSTANCE)
    assert names.PROOFS_PREFIX == layout.JobsBucket.PROOFS


def test_node_and_function_agree_on_the_proof() -> None:
    assert (names.CSR_HEADER, names.CLUSTER_HEADER) == (identity.CSR_HEADER, identity.CLUSTER_HEADER)
    assert proof.MAX_AGE.total_seconds() == identity.PROOF_SECONDS
    assert certificates.BACKDATE == issued.CLOCK_TOLERANCE


def test_kit_and_function_agree_on_their_limits() -> None:
    kit = (FUNCTION.parents[1] / "enrolment.py").read_text()  # as text: importing the kit starts Node.js
    assert f'PRIVATE_CA_TEMPLATE = "{private_ca.TEMPLATE}"' in kit
    assert f"MAX_CERTIFICATE_HOURS = {configuration.MAX_CERTIFICATE_HOURS}\n" in kit


def test_the_refusals_that_a_node_tells_apart_are_the_functions() -> None:
    assert {"unavailable", "replayed", "revoked"} <= {reason.value for reason in refusal.Reason}


def test_the_function_imports_only_what_lambda_gives_it() -> None:
    own = {path.stem for path in FUNCTION.glob("*.py")}
    allowed = own | {"boto3", "botocore", "cryptography"} | sys.stdlib_module_names
    for path in FUNCTION.glob("*.py"):
        lines = [line.split()[1] for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert {line.partition(".")[0] for line in lines} <= allowed, path.name
    assert signing_request.__file__ is not None
