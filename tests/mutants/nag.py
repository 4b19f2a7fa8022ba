"""Judges templates by cdk-nag: `python -m tests.mutants.nag FOLDER` prints the findings of each template as JSON.

cdk-nag judges constructs. A template becomes constructs again through `CfnInclude`, one stack for each. It is a process
of its own because a synthesis with findings writes them all to the terminal. An acknowledgement is no part of a
template: what the deployment acknowledges is found here, in the mutant as in the template that it was made of.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

os.environ["JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION"] = "18,20"

import aws_cdk as cdk
from aws_cdk import cloudformation_include as include
from cdk_nag import AwsSolutionsChecks

PACK = "AwsSolutions"


def main() -> int:
    """Print the findings by the template's name; a template that no construct can hold has one that says so."""
    paths = sorted(Path(sys.argv[1]).glob("*.json"))
    findings: dict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as output:
        app = cdk.App(outdir=output, analytics_reporting=False)
        for path in paths:
            # The template brings the rule of the bootstrap's version along.
            synthesizer = cdk.DefaultStackSynthesizer(generate_bootstrap_version_rule=False)
            held = cdk.Stack(app, path.stem, synthesizer=synthesizer)
            try:
                include.CfnInclude(held, "Template", template_file=str(path))
            except RuntimeError as error:
                app.node.try_remove_child(path.stem)
                findings[path.stem].append(f"unreadable: {str(error).splitlines()[0]}")
        cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
        # Findings end a synthesis; the report is written all the same, and read_text fails if it is not.
        with contextlib.suppress(RuntimeError):
            app.synth()
        report = json.loads((Path(output) / "validation-report.json").read_text())
    for violation in (found for pack in report["pluginReports"] for found in pack["violations"]):
        # The CDK's own validator is in the report too.
        if violation["ruleName"].startswith(PACK):
            for construct in violation["violatingConstructs"]:
                stack, *inside = construct["constructPath"].split("/")
                findings[stack].append(f"{violation['ruleName']} {inside[-1] if inside else 'stack'}")
    print(json.dumps(findings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
