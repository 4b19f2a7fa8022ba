"""What each role's nodes may do: the whole of each policy."""

from typing import Any

import pytest
from tests.kit.support import ROOT, Deployment

from holdfast.wheels import recorded
from holdfast_node.contract.roles import Role

JOBS, MODELS = "<FoundationBucketsJobs.Arn>", "<FoundationBucketsModels.Arn>"
DIGEST_ONLY = {"StringEquals": {"kms:MessageType": "DIGEST", "kms:SigningAlgorithm": "ECDSA_SHA_256"}}
ACCESS_POINT = "arn:aws:elasticfilesystem:us-east-1:<AWS::AccountId>:access-point/<ClusterCheckpointsAccessPoint>"
#: The digest of the wheels that workers with GPUs install, which is the published object's name.
GPU_WHEELS = recorded(ROOT / "node/requirements-gpu.txt")
Grant = tuple[Any, Any, Any]


def common(role: Role) -> dict[str, Grant]:
    return {
        "Enrol": ("lambda:InvokeFunction", "<FoundationEnrolmentFunction.Arn>", None),
        "VerifyJobs": ("kms:GetPublicKey", "<FoundationKeysJobSigning.Arn>", None),
        "EncryptedObjects": (
            ["kms:Decrypt", "kms:GenerateDataKey"],
            "<FoundationKeysData.Arn>",
            {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}},
        ),
        "ReadJobs": ("s3:GetObject", [f"{JOBS}/jobs/*", f"{JOBS}/rendezvous/current.json"], None),
        "ListDenials": ("s3:ListBucket", JOBS, {"StringEquals": {"s3:prefix": "denied/"}}),
        "RecordBoot": ("s3:PutObject", f"{JOBS}/boot/{role}/*", None),
        "OwnRecords": ("s3:PutObject", [f"{JOBS}/nodes/{role}/*", f"{JOBS}/results/{role}/*"], None),
        "WriteLogs": (["logs:CreateLogStream", "logs:PutLogEvents"], "<FoundationNodeLog.Arn>", None),
    }


MOUNT: Grant = (
    ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"],
    "<ClusterCheckpointsFileSystem.Arn>",
    {"StringEquals": {"elasticfilesystem:AccessPointArn": ACCESS_POINT}},
)


OWN: dict[Role, dict[str, Grant]] = {
    Role.SCHEDULER: {
        "ReadControlAndRecords": (
            "s3:GetObject",
            [f"{JOBS}/boot/*", f"{JOBS}/control/current.json", f"{JOBS}/nodes/*", f"{JOBS}/results/*"],
            None,
        ),
        "ListRegistrations": ("s3:ListBucket", JOBS, {"StringLike": {"s3:prefix": ["nodes/*", "boot/*"]}}),
        "LeadJobs": ("s3:PutObject", [f"{JOBS}/rendezvous/current.json", f"{JOBS}/status/*"], None),
        "ReportJobs": (
            ["states:SendTaskFailure", "states:SendTaskHeartbeat", "states:SendTaskSuccess"],
            "arn:aws:states:us-east-1:<AWS::AccountId>:stateMachine:dev-jobs",
            None,
        ),
    },
    Role.SERVER: {"MountCheckpoints": MOUNT},
    Role.WORKER: {
        "MountCheckpoints": MOUNT,
        "SignModels": ("kms:Sign", "<FoundationKeysModelSigning.Arn>", DIGEST_ONLY),
        "VerifyModels": ("kms:GetPublicKey", "<FoundationKeysModelSigning.Arn>", None),
        "PublishModels": ("s3:PutObject", f"{MODELS}/models/*", None),
    },
}


@pytest.mark.parametrize("role", Role)
def test_a_role_may_do_this_and_nothing_else(dev: Deployment, role: Role) -> None:
    statements = dev.statements(f"Cluster{role.title()}Policy")
    bundle = statements.pop("FetchBundle")
    assert {sid: (s["Action"], s["Resource"], s.get("Condition")) for sid, s in statements.items()} == {
        **common(role),
        **OWN[role],
    }
    assert {s["Effect"] for s in statements.values()} == {"Allow"}
    assert bundle["Action"] == "s3:GetObject"
    assert len(set(bundle["Resource"])) == 2, "the bundle and the wheels"
    assert not any("*" in resource for resource in bundle["Resource"])
    assert any(GPU_WHEELS in resource for resource in bundle["Resource"]) is (role is Role.WORKER)


@pytest.mark.parametrize("role", Role)
def test_a_role_has_one_policy_and_no_other_role_has_it(dev: Deployment, role: Role) -> None:
    policy = dev.properties("AWS::IAM::ManagedPolicy")[f"Cluster{role.title()}Policy"]
    assert policy["Roles"] == [f"<Cluster{role.title()}Role>"]


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.SERVER])
def test_only_workers_sign_models(dev: Deployment, role: Role) -> None:
    actions = str(dev.statements(f"Cluster{role.title()}Policy"))
    assert "kms:Sign" not in actions
    assert MODELS not in actions


@pytest.mark.parametrize("role", Role)
def test_no_node_signs_jobs_or_certificates(dev: Deployment, role: Role) -> None:
    for statement in dev.statements(f"Cluster{role.title()}Policy").values():
        if "kms:Sign" in statement["Action"]:
            assert statement["Resource"] == "<FoundationKeysModelSigning.Arn>"
