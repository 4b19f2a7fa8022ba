"""A job is not submitted where its instances would be paid for and never become nodes."""

from pathlib import Path

import pytest

from holdfast_cli import jobs
from holdfast_cli.aws import Aws, Cluster
from holdfast_cli.errors import SubmitError


@pytest.fixture(autouse=True)
def on_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def cluster(node_boot: str) -> Cluster:
    text = dict.fromkeys(("jobs_bucket", "models_bucket", "job_signing_key", "model_signing_key", "state_machine"), "x")
    numbers = {"max_workers": 2, "max_servers": 2, "min_job_seconds": 60, "max_job_seconds": 3600, "max_restarts": 2}
    return Cluster(
        aws=Aws("us-east-1"), name="demo", log_group="x", engine="mxnet", node_boot=node_boot, **text, **numbers
    )


def test_bundle_without_an_installer_cannot_boot_on_aws() -> None:
    assert not cluster("local-hosts-only").nodes_can_boot
    assert cluster("ec2").nodes_can_boot


def test_the_same_bundle_boots_local_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:4566")
    assert cluster("local-hosts-only").nodes_can_boot


def test_submit_refuses_before_it_calls_aws(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()\n")
    request = jobs.check_request(
        jobs.Request(
            directory=tmp_path,
            entry="train.py",
            args=(),
            workers=1,
            servers=1,
            model_dir="model",
            timeout_seconds=None,
        )
    )
    with pytest.raises(SubmitError) as refusal:
        jobs.submit(cluster("local-hosts-only"), request, lambda text: None)
    assert str(refusal.value) == (
        "nodes of cluster demo cannot boot on EC2: its node bundle has no installer, so "
        "instances would be paid for and never train. Deploy it from a checkout, whose bundle has one"
    )
