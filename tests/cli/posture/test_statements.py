"""What a policy document says, in every form that IAM allows."""

from typing import Any

import pytest

from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.statements import parse, strangers

OWN = "000000000000"
OTHER = "arn:aws:iam::111122223333:root"


def statement(**fields: Any) -> Any:
    (found,) = parse({"Statement": {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*", **fields}}, "it")
    return found


#: (what the statement says, who it admits from outside)
ADMITTED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the account's root": ({"Principal": {"AWS": f"arn:aws:iam::{OWN}:root"}}, []),
    "the account by its number": ({"Principal": {"AWS": OWN}}, []),
    "a role of the account": ({"Principal": {"AWS": [f"arn:aws:iam::{OWN}:role/x"]}}, []),
    "another account": ({"Principal": {"AWS": [f"arn:aws:iam::{OWN}:root", OTHER]}}, [OTHER]),
    "everybody": ({"Principal": "*"}, ["everybody"]),
    "everybody as an AWS principal": ({"Principal": {"AWS": "*"}}, ["everybody"]),
    "everybody of the account": (
        {"Principal": "*", "Condition": {"StringEquals": {"AWS:PrincipalAccount": OWN}}},
        [],
    ),
    "everybody of either account": (
        {"Principal": "*", "Condition": {"StringEquals": {"aws:PrincipalAccount": [OWN, "111122223333"]}}},
        ["everybody"],
    ),
    "everybody but the account": (
        {"Principal": "*", "Condition": {"StringNotEquals": {"aws:PrincipalAccount": OWN}}},
        ["everybody"],
    ),
    "everybody who says so": (
        {"Principal": "*", "Condition": {"StringEqualsIfExists": {"aws:PrincipalAccount": OWN}}},
        ["everybody"],
    ),
    "everybody over TLS": ({"Principal": "*", "Condition": {"Bool": {"aws:SecureTransport": True}}}, ["everybody"]),
    "whoever is not one": ({"NotPrincipal": {"AWS": OTHER}}, ["everybody but those it names", OTHER]),
    "a service": ({"Principal": {"Service": "s3.amazonaws.com"}}, ["s3.amazonaws.com"]),
    "nobody: it denies": ({"Effect": "Deny", "Principal": "*"}, []),
}


@pytest.mark.parametrize("case", ADMITTED)
def test_strangers_are_who_the_account_does_not_hold(case: str) -> None:
    fields, expected = ADMITTED[case]
    assert list(strangers(statement(**fields), OWN)) == expected


def test_conditions_are_lists_by_operator_and_lower_case_key() -> None:
    found = statement(Condition={"Bool": {"aws:SecureTransport": False}, "NumericLessThan": {"s3:TlsVersion": 1.2}})
    assert found.conditions == {
        ("Bool", "aws:securetransport"): ("false",),
        ("NumericLessThan", "s3:tlsversion"): ("1.2",),
    }


@pytest.mark.parametrize(
    "document", ["", "[]", "null", "{}", '{"Statement": [{"Action": "*"}]}', '{"Statement": ["x"]}', 7]
)
def test_what_is_no_policy_document_is_unreadable(document: Any) -> None:
    with pytest.raises(Unreadable, match="the policy of it is no policy document"):
        parse(document, "the policy of it")
