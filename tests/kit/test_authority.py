"""What signs certificates, as the template has it: the first CA for ever, a rotation, a private CA."""

from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import assertions
from tests.kit.support import ROOT, Deployment, by_sid, flat

from holdfast import AuthorityProps, ClusterFoundation, PropertyError

PRIVATE_CA = "arn:aws:acm-pca:us-east-1:111122223333:certificate-authority/12345678-1234-1234-1234-123456789012"
KEY = "<FoundationKeysCertificateAuthority{}.Arn>"
BUCKET = "<FoundationBucketsJobs.Arn>"


class Foundation:
    """A foundation of its own, synthesized."""

    def __init__(self, authority: AuthorityProps | None = None) -> None:
        stack = cdk.Stack(cdk.App(analytics_reporting=False), "Sample")
        places = {"cache_directory": ROOT / ".build", "node_source": ROOT / "node"}
        ClusterFoundation(stack, "Foundation", cluster_name="vision", authority=authority, **places)  # type: ignore[arg-type]
        self.template = assertions.Template.from_stack(stack)

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        return dict(self.template.find_resources(kind))

    def keys(self) -> set[str]:
        return {name[:-8].removeprefix("FoundationKeys") for name in self.of_type("AWS::KMS::Key")}

    def aliases(self) -> set[str]:
        return {a["Properties"]["AliasName"].split("/")[-1] for a in self.of_type("AWS::KMS::Alias").values()}

    def environment(self) -> dict[str, Any]:
        (function,) = self.of_type("AWS::Lambda::Function").values()
        variables = flat(function["Properties"]["Environment"]["Variables"])
        return {name: value for name, value in variables.items() if "_CA" in name}

    def statements(self) -> dict[str, tuple[Any, Any]]:
        (policy,) = self.of_type("AWS::IAM::ManagedPolicy").values()
        found = by_sid(flat(policy["Properties"]["PolicyDocument"]))
        return {sid: (s["Action"], s["Resource"]) for sid, s in found.items()}


@pytest.fixture(scope="module")
def rotating() -> Foundation:
    return Foundation(AuthorityProps(generation=2, overlap=True))


@pytest.fixture(scope="module")
def private() -> Foundation:
    return Foundation(AuthorityProps(private_ca_arn=PRIVATE_CA))


#: CloudFormation knows a resource by its logical id: under another one it makes another key, which is another CA, and
#: every running node refuses it. These ids never change, whatever is renamed in the code.
CA_KEY = "FoundationKeysCertificateAuthorityBA134177"


@pytest.mark.parametrize("settings", ["dev", "prod", "local"])
def test_the_cas_key_keeps_its_logical_id_for_ever(settings: str, request: pytest.FixtureRequest) -> None:
    deployment: Deployment = request.getfixturevalue(settings)
    keys = [i for i, r in deployment.template("Foundation")["Resources"].items() if r["Type"] == "AWS::KMS::Key"]
    assert [key for key in keys if "Authority" in key] == [CA_KEY]


def test_a_rotation_keeps_the_first_key_and_adds_one(rotating: Foundation) -> None:
    assert CA_KEY in rotating.of_type("AWS::KMS::Key")
    assert rotating.keys() == {"Data", "CertificateAuthority", "CertificateAuthority2", "JobSigning", "ModelSigning"}
    assert {"ca", "ca-2"} <= rotating.aliases()


def test_both_keys_of_a_rotation_are_kept_and_sign_for_the_function_alone(rotating: Foundation) -> None:
    keys = {name[:-8]: key for name, key in rotating.of_type("AWS::KMS::Key").items() if "Authority" in name}
    assert len(keys) == 2
    for key in keys.values():
        assert (key["DeletionPolicy"], key["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
        statements = by_sid({"Statement": [s for s in key["Properties"]["KeyPolicy"]["Statement"] if "Sid" in s]})
        assert set(statements) == {"DenyOtherSigners", "DenyOtherMessages", "DenyOtherAlgorithms"}


def test_the_function_of_a_rotation_may_use_both_cas(rotating: Foundation) -> None:
    both = [KEY.format("2"), KEY.format("")]
    statements = rotating.statements()
    assert statements["SignCertificates"] == ("kms:Sign", both)
    assert statements["ReadAuthorityKey"] == ("kms:GetPublicKey", both)
    assert statements["CaCertificate"] == (
        ["s3:GetObject", "s3:PutObject"],
        [f"{BUCKET}/pki/ca-2.pem", f"{BUCKET}/pki/ca.pem"],
    )
    assert rotating.environment() == {
        "HOLDFAST_CA_KEY": KEY.format("2"),
        "HOLDFAST_CA_GENERATION": "2",
        "HOLDFAST_PREVIOUS_CA_KEY": KEY.format(""),
    }


def test_after_a_rotation_the_function_may_use_the_new_ca_only() -> None:
    done = Foundation(AuthorityProps(generation=2))
    assert done.keys() == {"Data", "CertificateAuthority2", "JobSigning", "ModelSigning"}
    assert done.statements()["SignCertificates"] == ("kms:Sign", KEY.format("2"))
    assert done.statements()["CaCertificate"][1] == f"{BUCKET}/pki/ca-2.pem"
    assert done.environment() == {"HOLDFAST_CA_KEY": KEY.format("2"), "HOLDFAST_CA_GENERATION": "2"}


def test_with_a_private_ca_there_is_no_key_for_one(private: Foundation) -> None:
    assert private.keys() == {"Data", "JobSigning", "ModelSigning"}
    assert private.environment() == {"HOLDFAST_PRIVATE_CA": PRIVATE_CA}


def test_the_function_may_use_that_private_ca_with_that_template_only(private: Foundation) -> None:
    (policy,) = private.of_type("AWS::IAM::ManagedPolicy").values()
    found = by_sid(policy["Properties"]["PolicyDocument"])
    pca = {sid: s for sid, s in found.items() if "acm-pca" in str(s["Action"])}
    assert pca == {
        "IssueCertificates": {
            "Sid": "IssueCertificates",
            "Effect": "Allow",
            "Action": "acm-pca:IssueCertificate",
            "Resource": PRIVATE_CA,
            "Condition": {
                "StringEquals": {
                    "acm-pca:TemplateArn": "arn:aws:acm-pca:::template/BlankEndEntityCertificate_APIPassthrough/V1"
                }
            },
        },
        "ReadIssued": {
            "Sid": "ReadIssued",
            "Effect": "Allow",
            "Action": ["acm-pca:GetCertificate", "acm-pca:GetCertificateAuthorityCertificate"],
            "Resource": PRIVATE_CA,
        },
    }
    assert not {"SignCertificates", "ReadAuthorityKey", "CaCertificate"} & set(found)


def test_without_a_private_ca_nothing_of_it_is_allowed(dev: Deployment) -> None:
    assert "acm-pca" not in str(dev.template("Foundation"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no generation": ({"generation": 0}, "generation must be between 1 and 99, got 0; raise it by one to rotate"),
    "an overlap with none": (
        {"overlap": True},
        "overlap must be false for generation 1: there is no CA before it to trust",
    ),
    "both kinds": (
        {"generation": 2, "private_ca_arn": PRIVATE_CA},
        "private_ca_arn goes without generation and overlap: AWS Private CA keeps that CA",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_authority_that_cannot_be_is_refused(case: str) -> None:
    values, message = REFUSED[case]
    with pytest.raises(PropertyError) as refusal:
        AuthorityProps(**values)
    assert str(refusal.value) == message
