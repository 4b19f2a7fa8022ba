"""Our assertions catch every mutant, none of them for nothing, and find nothing in the templates as they are."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.kit.posture.identity import ACTIONS
from tests.kit.posture.model import Template, Templates, actions, allowed, rule_name
from tests.kit.posture.rules import KINDS, RULES, judge
from tests.kit.support import ROOT
from tests.mutants import gates, report, trial
from tests.mutants.deployments import DEPLOYMENTS
from tests.mutants.edits import (
    Edit,
    Mutant,
    NoSuchPlaceError,
    add,
    allow,
    drop,
    give,
    like,
    new,
    on_deletion,
    put,
    replace,
)
from tests.mutants.mutants import MUTANTS, mutated

Get = Callable[[str], Mapping[str, Template]]
Broken = Callable[[Mutant], list[str]]
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.fixture(scope="module")
def broken(templates: Get) -> Broken:
    """The rules of ours that a mutant breaks, judged once."""

    @functools.cache
    def rules(mutant: Mutant) -> list[str]:
        return sorted({finding.rule for finding in gates.assertions(mutant, templates(mutant.of))})

    return rules


def test_every_settings_file_is_judged() -> None:
    assert {path.stem for path in (ROOT / "settings").glob("*.toml")} <= set(DEPLOYMENTS)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_templates_as_they_are_break_no_rule(templates: Get, name: str) -> None:
    assert list(map(str, judge(Templates(templates(name))))) == []


def test_every_kind_and_action_that_rules_know_is_there(templates: Get) -> None:
    everything = [resource for name in DEPLOYMENTS for resource in Templates(templates(name)).resources]
    policies = [r.at("PolicyDocument") for r in everything if r.kind == "AWS::IAM::ManagedPolicy"]
    assert {resource.kind for resource in everything} == KINDS
    assert {action for policy in policies for statement in allowed(policy) for action in actions(statement)} == ACTIONS


def test_mutants_are_many_and_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(MUTANTS) >= 44


@pytest.mark.parametrize("name", BY_NAME)
def test_our_assertions_catch(broken: Broken, name: str) -> None:
    assert broken(BY_NAME[name])


def test_every_rule_is_the_only_one_to_catch_some_mutant(broken: Broken) -> None:
    alone = {rules[0] for rules in map(broken, MUTANTS) if len(rules) == 1}
    assert {rule_name(rule) for rule in RULES} - alone == set()


@pytest.mark.parametrize("name", BY_NAME)
def test_a_mutant_changes_one_resource_and_not_its_original(templates: Get, name: str) -> None:
    mutant = BY_NAME[name]
    before = json.dumps(templates(mutant.of))
    old, changed = templates(mutant.of)[mutant.part]["Resources"], mutated(mutant, templates(mutant.of))["Resources"]
    assert json.dumps(templates(mutant.of)) == before

    def without_waiting(resource: dict[str, object] | None) -> dict[str, object] | None:
        return resource and {key: value for key, value in resource.items() if key != "DependsOn"}

    differing = [key for key in old | changed if without_waiting(old.get(key)) != without_waiting(changed.get(key))]
    assert len(differing) == 1


def test_a_finding_says_where_what_got_and_allowed(templates: Get) -> None:
    (found,) = gates.assertions(BY_NAME["imdsv1"], templates("dev"))
    assert str(found) == (
        "metadata-needs-a-token-and-ends-at-the-host: Training/ClusterWorkerTemplate: "
        "LaunchTemplateData.MetadataOptions.HttpTokens must be 'required', got 'optional'"
    )


def a_template() -> dict[str, Any]:
    policy = {"Statement": [{"Sid": "Read", "Action": "s3:GetObject"}]}
    return {
        "Resources": {
            "Bucket0123ABCD": {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain", "Properties": {"Name": "a"}},
            "Policy0123ABCD": {"Type": "AWS::S3::BucketPolicy", "Properties": {"Document": policy}},
            "Twin0123ABCD": {"Type": "AWS::S3::Bucket", "Properties": {}},
            "Twin4567ABCD": {"Type": "AWS::S3::Bucket", "Properties": {}},
        }
    }


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (put("Missing", "Name", to="b"), r"Missing must be one resource of the template, got \[\]"),
        (put("Twin", "Name", to="b"), r"Twin must be one resource of the template, got \['Twin0123ABCD', 'Twin4567A"),
        (put("Bucket", "Owner", to="b"), "'Owner' of Owner is not there"),
        (put("Bucket", "Name", to="a"), "Name of Bucket is already 'a'"),
        (put("Policy", "Document", "Statement", 1, "Action", to="*"), "1 of Document.Statement.1 is not there"),
        (give("Bucket", "Name", to="b"), "Name of Bucket is already there: 'a'"),
        (drop("Missing"), "Missing must be one resource"),
        (drop("Policy", "Document", "Statement", "Write"), "'Write' of Document.Statement.Write is not there"),
        (add("Policy", "Document", "Rules", item={}), "'Rules' of Document.Rules is not there"),
        (allow("Policy", "Nothing", Action="*"), "'Nothing' of Nothing.Statement is not there"),
        (replace("Bucket", "Name", old="c", new="b"), "'c' is not in Name of Bucket"),
        (new("AWS::S3::Bucket", Name=like("Bucket", "Owner")), "'Owner' of Owner is not there"),
        (on_deletion("Bucket", now="Delete", then="Retain"), "DeletionPolicy of Bucket must be Delete, got Retain"),
    ],
)
def test_an_edit_fails_where_what_it_changes_is_not_there(edit: Edit, cause: str) -> None:
    with pytest.raises(NoSuchPlaceError, match=cause):
        edit(a_template())


def test_the_other_gates_catch_what_they_know_and_nothing_in_the_original(templates: Get, tmp_path: Path) -> None:
    original = templates("dev")["Training"]
    mutants = {name: mutated(BY_NAME[name], templates("dev")) for name in ("misspelled-action", "administrator")}
    for name, template in {"original": original, **mutants}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(template))
    linted, nagged = gates.lint(tmp_path), gates.nag(tmp_path)
    assert {name: {trial.rule_id(text) for text in found} for name, found in linted.items()} == {
        "misspelled-action": {"W3037"}
    }
    assert {trial.rule_id(text) for text in nagged["administrator"] - nagged["original"]} == {"AwsSolutions-IAM4"}
    assert {trial.rule_id(text) for text in nagged["original"]} <= {
        *("AwsSolutions-AS3", "AwsSolutions-IAM5", "AwsSolutions-SF2"),
    }


def test_the_page_says_what_our_assertions_find(broken: Broken) -> None:
    lines = report.PAGE.read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines]
    mutants = [cells[:4] for cells in rows if cells[0] in BY_NAME]
    assert mutants == [[mutant.name, mutant.part, mutant.what, ", ".join(broken(mutant))] for mutant in MUTANTS]
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants are caught." in lines


def an_outcome(*rules: str, alarms: tuple[str, ...] = ()) -> trial.Outcome:
    found = {gate: list(rules) if gate == "cfn-lint" else [] for gate in trial.GATES}
    return trial.Outcome([trial.Result(MUTANTS[0], found)], list(alarms))


def test_a_mutant_that_one_gate_catches_is_as_it_should_be() -> None:
    outcome = an_outcome("E1")
    assert outcome.as_it_should
    assert report.verdict(outcome) == "1 of 1 mutants are caught"
    assert report.summary(outcome) == [["our assertions", "0", "0"], ["cfn-lint", "1", "1"], ["cdk-nag", "0", "0"]]


def test_a_mutant_that_nobody_catches_is_shown() -> None:
    outcome = an_outcome()
    assert not outcome.as_it_should
    assert report.verdict(outcome) == "0 of 1 mutants are caught; not caught: open-ingress"
    assert report.NOT_CAUGHT in report.page(outcome)


def test_a_finding_in_an_original_is_not_as_it_should_be() -> None:
    outcome = an_outcome("E1", alarms=("cfn-lint: original-dev-Training: E1",))
    assert not outcome.as_it_should
    assert report.verdict(outcome) == "1 of 1 mutants are caught; 1 findings in the originals"
