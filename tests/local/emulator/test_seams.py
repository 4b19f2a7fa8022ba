import os
import subprocess

import pytest

from .conftest import AWS_PYTHON, ROOT

CASES = {
    "another version": (
        "seams.VERSION = '9.9.9'; seams.require_version()",
        "the embedded AWS needs ministack 9.9.9, got 1.5.33; run `make setup`, or adapt",
    ),
    "a missing private name": (
        "seams.seam('ministack.services.ec2', '_instances', '_no_such_name')",
        "the embedded AWS relies on _no_such_name in ministack.services.ec2 1.5.33, got none",
    ),
    "a missing module": (
        "seams.seam('ministack.services.no_such_service')",
        "the embedded AWS relies on ministack.services.no_such_service, which cannot be imported",
    ),
}


def run(program: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT}/local:{ROOT}/node"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    program = f"from holdfast_local.emulator.extension import cloudformation, seams\n{program}"
    command = [AWS_PYTHON, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("case", CASES)
def test_unexpected_ministack_is_refused_with_its_reason(case: str) -> None:
    program, message = CASES[case]
    ended = run(program)
    assert ended.returncode != 0
    assert message in ended.stderr


def test_expected_ministack_is_accepted() -> None:
    assert run("seams.require_version()").returncode == 0


def test_type_that_ministack_handles_itself_is_not_hidden() -> None:
    ended = run("cloudformation.register('AWS::EC2::VPC', None, None)")
    assert "ministack handles AWS::EC2::VPC itself; remove the extension's handler" in ended.stderr
