"""Shells on nodes: nobody has a way to one, unless the settings ask for Session Manager."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.kit.support import PARTS, ROOT, Deployment, by_sid, synthesize

from holdfast_node.contract.documents import NodeConfig, RemoteAccess
from holdfast_node.contract.roles import Role
from stacks.settings import RESERVED_ADDRESSES, SettingError, Settings

CHANNELS = [f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")]
RECORD = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
INSTANCES = "arn:aws:ec2:us-east-1:<AWS::AccountId>:instance/*"
LOG_GROUPS = "arn:aws:logs:us-east-1:<AWS::AccountId>:log-group:*"
KEY, LOG = "<FoundationSessionsKey.Arn>", "<FoundationSessionsLog.Arn>"
OWN_ACCOUNT = {"StringEquals": {"aws:PrincipalAccount": "<AWS::AccountId>"}}
MFA = {"aws:MultiFactorAuthPresent": "true"}
NO_OTHER_USER = {"Null": {"aws:PrincipalTag/SSMSessionRunAs": "true"}}

NODE: dict[str, tuple[Any, Any]] = {
    "SessionChannels": (CHANNELS, "*"),
    "ReportAgent": ("ssm:UpdateInstanceInformation", INSTANCES),
    "RecordSessions": (RECORD, LOG),
    "FindRecord": ("logs:DescribeLogGroups", LOG_GROUPS),
    "DecryptSessions": ("kms:Decrypt", KEY),
}
#: By service: what its endpoint admits besides what it does without sessions.
ENDPOINTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "ssm": {"Nodes": NODE["ReportAgent"]},
    "ssmmessages": {"Nodes": NODE["SessionChannels"]},
    "kms": {"DecryptSessions": NODE["DecryptSessions"]},
    "logs": {name: NODE[name] for name in ("RecordSessions", "FindRecord")},
}
OPERATORS: dict[str, tuple[Any, Any, Any]] = {
    "OpenSessions": (
        "ssm:StartSession",
        INSTANCES,
        {
            "Bool": {**MFA, "ssm:SessionDocumentAccessCheck": "true"},
            "StringEquals": {"aws:ResourceTag/holdfast:cluster": "dev"},
            **NO_OTHER_USER,
        },
    ),
    "WithThisDocument": (
        "ssm:StartSession",
        "arn:aws:ssm:us-east-1:<AWS::AccountId>:document/holdfast-dev-session",
        {"Bool": MFA, **NO_OTHER_USER},
    ),
    "OwnSessions": (
        ["ssm:ResumeSession", "ssm:TerminateSession"],
        "arn:aws:ssm:us-east-1:<AWS::AccountId>:session/${aws:userid}-*",
        None,
    ),
    "EncryptSessions": ("kms:GenerateDataKey", KEY, {"Bool": MFA}),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    changes = {
        "cluster": {"remote_access": RemoteAccess.SESSION_MANAGER},
        "predictor": {"job": "digits-20260102-030405-ab12"},
    }
    return synthesize(tmp_path_factory.mktemp("opened"), changes)


def services(deployment: Deployment) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        properties["ServiceName"].rsplit(".", 1)[1]: by_sid(properties["PolicyDocument"])
        for properties in deployment.properties("AWS::EC2::VPCEndpoint").values()
    }


@pytest.mark.parametrize("part", PARTS)
def test_by_default_no_template_knows_of_sessions(dev: Deployment, part: str) -> None:
    text = json.dumps({**dev.template(part), "Parameters": {}})
    assert not [word for word in ("ssm:", "ssmmessages", "ec2messages", "AmazonSSM", "SSM::Document") if word in text]


@pytest.mark.parametrize("role", Role)
def test_by_default_a_node_is_told_to_keep_the_agent_off(dev: Deployment, opened: Deployment, role: Role) -> None:
    def told(deployment: Deployment) -> RemoteAccess:
        script = deployment.properties("AWS::EC2::LaunchTemplate")[f"Cluster{role.title()}Template"]
        text = script["LaunchTemplateData"]["UserData"]
        return NodeConfig.parse(next(line for line in text.splitlines() if line.startswith('{"'))).remote_access

    assert (told(dev), told(opened)) == (RemoteAccess.NONE, RemoteAccess.SESSION_MANAGER)


@pytest.mark.parametrize("policy", [*(f"Cluster{role.title()}Policy" for role in Role), "PredictorNodesPolicy"])
def test_nodes_may_what_the_agent_needs_and_nothing_else(opened: Deployment, dev: Deployment, policy: str) -> None:
    statements = opened.statements(policy)
    assert {sid: (s["Action"], s["Resource"]) for sid, s in statements.items() if sid in NODE} == NODE
    if not policy.startswith("Predictor"):
        assert set(statements) == set(dev.statements(policy)) | set(NODE)
    assert "ManagedPolicyArns" not in json.dumps(opened.properties("AWS::IAM::Role")[policy.replace("Policy", "Role")])


def test_two_endpoints_are_added_and_two_admit_more(opened: Deployment, dev: Deployment) -> None:
    before, after = services(dev), services(opened)
    assert set(after) - set(before) == {"ssm", "ssmmessages"}
    for service, statements in after.items():
        new = {sid: statement for sid, statement in statements.items() if sid not in before.get(service, {})}
        assert {sid: (s["Action"], s["Resource"]) for sid, s in new.items()} == ENDPOINTS.get(service, {})
        assert all(statement["Condition"] == OWN_ACCOUNT for statement in new.values())


def test_sessions_are_encrypted_recorded_short_and_an_unprivileged_users(opened: Deployment) -> None:
    (document,) = opened.properties("AWS::SSM::Document").values()
    assert (document["Name"], document["DocumentType"]) == ("holdfast-dev-session", "Session")
    assert document["Content"]["sessionType"] == "Standard_Stream"
    assert document["Content"]["inputs"] == {
        "kmsKeyId": KEY,
        "cloudWatchLogGroupName": "<FoundationSessionsLog>",
        "cloudWatchEncryptionEnabled": True,
        "cloudWatchStreamingEnabled": True,
        **{"s3BucketName": "", "s3KeyPrefix": "", "s3EncryptionEnabled": True},
        **{"runAsEnabled": True, "runAsDefaultUser": "holdfast-operator"},
        **{"idleSessionTimeout": "10", "maxSessionDuration": "60"},
    }


def test_the_record_is_encrypted_with_the_data_key_and_kept(opened: Deployment) -> None:
    log = opened.resources("AWS::Logs::LogGroup")["FoundationSessionsLog"]
    assert log["Properties"]["LogGroupName"] == "/holdfast/dev/sessions"
    assert log["Properties"]["KmsKeyId"] == "<FoundationKeysData.Arn>"
    assert (log["DeletionPolicy"], log["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


def test_operators_open_sessions_with_a_second_factor_and_this_document_only(opened: Deployment) -> None:
    statements = opened.statements("FoundationSessionsOperators")
    found = {sid: (s["Action"], s["Resource"], s.get("Condition")) for sid, s in statements.items()}
    assert found == OPERATORS
    assert {s["Effect"] for s in statements.values()} == {"Allow"}


def test_nobody_has_the_operators_policy_until_it_is_attached(opened: Deployment) -> None:
    policy = opened.properties("AWS::IAM::ManagedPolicy")["FoundationSessionsOperators"]
    assert not {"Roles", "Users", "Groups"} & set(policy)


def test_instances_carry_the_tag_that_operators_policy_asks_for(opened: Deployment) -> None:
    groups = opened.properties("AWS::AutoScaling::AutoScalingGroup").values()
    assert len(groups) == len(Role) + 1
    for group in groups:
        assert {"Key": "holdfast:cluster", "Value": "dev", "PropagateAtLaunch": True} in group["Tags"]


def test_the_policy_pack_has_no_finding_left(opened: Deployment) -> None:
    report = json.loads((opened.directory / "validation-report.json").read_text())
    assert [v["ruleName"] for r in report["pluginReports"] for v in r["violations"]] == []


def test_templates_pass_cfn_lint(opened: Deployment) -> None:
    templates = sorted(map(str, opened.directory.glob("*.template.json")))
    linter = Path(sys.executable).with_name("cfn-lint")
    result = subprocess.run(
        [linter, "--regions", "us-east-1", "--", *templates], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_sessions_endpoints_take_addresses_of_the_subnets(dev: Deployment) -> None:
    from stacks.config import load

    values = load("dev").model_dump()
    values["servers"]["max"] = 4
    values["workers"]["max"] = 32 - RESERVED_ADDRESSES - 5 - 4 - 1
    values["network"]["cidr"] = "10.77.0.0/26"
    values["limits"]["usd_per_job"] = None
    assert Settings.model_validate(values).network.cidr == "10.77.0.0/26"
    values["cluster"]["remote_access"] = RemoteAccess.SESSION_MANAGER
    with pytest.raises(ValueError, match=r"must be a /16 to a /25, got /26; .* 7 for endpoints") as refusal:
        Settings.model_validate(values)
    assert isinstance(refusal.value.errors()[0]["ctx"]["error"], SettingError)  # type: ignore[attr-defined]


#: Decides requests as the embedded AWS does, by its own evaluator: [action, resource, context keys] each.
DECIDE = """
import json, sys
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

policy, requests = json.load(sys.stdin)
statements = parse_policy_document(policy)
for action, resource, keys in requests:
    context = EvalContext(
        "arn:aws:iam::111122223333:user/ann", "User", "111122223333", action, resource, "us-east-1", "10.0.0.1", True,
        service_context={name.lower(): value for name, value in keys.items()},
    )
    print(evaluate(context, [statements]).decision)
"""
INSTANCE = "arn:aws:ec2:us-east-1:111122223333:instance/i-0123456789abcdef0"
DOCUMENTS = "arn:aws:ssm:us-east-1:111122223333:document"
OPENING = {**MFA, "ssm:SessionDocumentAccessCheck": "true", "aws:ResourceTag/holdfast:cluster": "dev"}
#: What an operator with the policy asks for: action, resource, condition keys, and whether it is allowed. AWS asks for
#: instance and document both, where a session begins.
REQUESTS: dict[str, tuple[str, str, dict[str, str], bool]] = {
    "a session": ("ssm:StartSession", INSTANCE, OPENING, True),
    "with this document": ("ssm:StartSession", f"{DOCUMENTS}/holdfast-dev-session", MFA, True),
    "encrypted": ("kms:GenerateDataKey", "key", MFA, True),
    "its own session's end": ("ssm:TerminateSession", "arn:aws:ssm:us-east-1:111122223333:session/AIDA1-x", {}, True),
    "without a second factor": (
        *("ssm:StartSession", INSTANCE),
        *({**OPENING, "aws:MultiFactorAuthPresent": "false"}, False),
    ),
    "where no second factor is known": (
        *("ssm:StartSession", INSTANCE),
        *({key: value for key, value in OPENING.items() if key not in MFA}, False),
    ),
    "this document without a second factor": ("ssm:StartSession", f"{DOCUMENTS}/holdfast-dev-session", {}, False),
    "a key without a second factor": ("kms:GenerateDataKey", "key", {}, False),
    "an instance of another cluster": (
        *("ssm:StartSession", INSTANCE),
        *({**OPENING, "aws:ResourceTag/holdfast:cluster": "prod"}, False),
    ),
    "an instance of no cluster": (
        *("ssm:StartSession", INSTANCE),
        *({key: value for key, value in OPENING.items() if "Tag" not in key}, False),
    ),
    "any document that there is": (
        *("ssm:StartSession", INSTANCE),
        *({**OPENING, "ssm:SessionDocumentAccessCheck": "false"}, False),
    ),
    "the account's own document": ("ssm:StartSession", f"{DOCUMENTS}/SSM-SessionManagerRunShell", MFA, False),
    "a forwarded port": ("ssm:StartSession", f"{DOCUMENTS}/AWS-StartPortForwardingSession", MFA, False),
    "root's shell by a tag of its own": (
        *("ssm:StartSession", INSTANCE),
        *({**OPENING, "aws:PrincipalTag/SSMSessionRunAs": "root"}, False),
    ),
    "another's session's end": (
        "ssm:TerminateSession",
        "arn:aws:ssm:us-east-1:111122223333:session/AIDA2-x",
        {},
        False,
    ),
    "a command": ("ssm:SendCommand", INSTANCE, OPENING, False),
}


@pytest.fixture(scope="module")
def decisions(opened: Deployment) -> dict[str, str]:
    policy = opened.properties("AWS::IAM::ManagedPolicy")["FoundationSessionsOperators"]["PolicyDocument"]
    text = json.dumps(policy).replace(KEY, "key").replace("<AWS::AccountId>", "111122223333")
    # The evaluator knows no policy variables: ann's id stands where AWS puts it.
    text = text.replace("${aws:userid}", "AIDA1")
    requests = [request[:3] for request in REQUESTS.values()]
    result = subprocess.run(
        [ROOT / ".venv-aws/bin/python", "-c", DECIDE],
        input=json.dumps([text, requests]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(REQUESTS, result.stdout.split(), strict=True))


@pytest.mark.parametrize("case", REQUESTS)
def test_an_operator_may_ask_for(decisions: dict[str, str], case: str) -> None:
    assert decisions[case] == ("Allow" if REQUESTS[case][3] else "ImplicitDeny")
