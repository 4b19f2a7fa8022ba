"""Reading synthesized templates as plain data."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Foundation", "Network", "Training")
_EXPORT = re.compile(r"Holdfast-[a-z0-9-]+-\w+:ExportsOutput(?:FnGetAtt|Ref)(\w+?)[0-9A-F]{8}(Arn|GroupId|)[0-9A-F]{8}")
_HASH = re.compile(r"[0-9A-F]{8}$")


def flat(value: Any) -> Any:
    """Return a value with CloudFormation's functions written as text: `<Logical.Attribute>`, without hashes."""
    if isinstance(value, list):
        return [flat(item) for item in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value), ""):
        case "Fn::Join":
            delimiter, items = value["Fn::Join"]
            return delimiter.join(str(flat(item)) for item in items)
        case "Fn::Sub":
            return re.sub(r"\$\{([^}]+)\}", r"<\1>", value["Fn::Sub"])
        case "Fn::Base64":
            return flat(value["Fn::Base64"])
        case "Ref":
            return f"<{_HASH.sub('', value['Ref'])}>"
        case "Fn::GetAtt":
            logical_id, attribute = value["Fn::GetAtt"]
            return f"<{_HASH.sub('', logical_id)}.{attribute}>"
        case "Fn::ImportValue":
            found = _EXPORT.fullmatch(value["Fn::ImportValue"])
            assert found, value
            return f"<{found[1]}.{found[2]}>" if found[2] else f"<{found[1]}>"
        case _:
            return {key: flat(item) for key, item in value.items()}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Deployment:
    """The three templates of one settings file."""

    directory: Path
    cluster: str

    def template(self, part: str) -> dict[str, Any]:
        text = (self.directory / f"Holdfast-{self.cluster}-{part}.template.json").read_text()
        return dict(json.loads(text))

    def termination_protection(self, part: str) -> bool:
        manifest = json.loads((self.directory / "manifest.json").read_text())
        properties = manifest["artifacts"][f"Holdfast-{self.cluster}-{part}"]["properties"]
        return bool(properties.get("terminationProtection", False))

    def resources(self, kind: str, part: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the flattened resources of a type, by logical id without its hash."""
        return {
            _HASH.sub("", logical_id): flat(resource)
            for name in ([part] if part else PARTS)
            for logical_id, resource in self.template(name)["Resources"].items()
            if resource["Type"] == kind
        }

    def properties(self, kind: str, part: str | None = None) -> dict[str, dict[str, Any]]:
        return {name: resource["Properties"] for name, resource in self.resources(kind, part).items()}

    def types(self) -> set[str]:
        return {resource["Type"] for part in PARTS for resource in self.template(part)["Resources"].values()}

    def statements(self, policy: str) -> dict[str, dict[str, Any]]:
        """Return a managed policy's statements by Sid."""
        (found,) = [p for name, p in self.properties("AWS::IAM::ManagedPolicy").items() if name == policy]
        return by_sid(found["PolicyDocument"])


def by_sid(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    statements = document["Statement"]
    result = {statement["Sid"]: statement for statement in statements}
    assert len(result) == len(statements), "two statements share a Sid"
    return result


def synthesize(folder: Path, changes: dict[str, dict[str, Any]], name: str = "dev") -> Deployment:
    """Return the deployment of one of the repository's settings files with some values changed, judged by the pack.

    In this process: the findings that are left are in `validation-report.json`, and raise at synthesis.
    """
    import aws_cdk as cdk
    from app import build

    from stacks.config import load
    from stacks.settings import Settings

    values = load(name).model_dump()
    for table, keys in changes.items():
        values[table] |= keys
    context = json.loads((ROOT / "cdk.json").read_text())["context"]
    app = cdk.App(outdir=str(folder), analytics_reporting=False, context=context)
    build(app, Settings.model_validate(values))
    app.synth()
    return Deployment(folder, name)
