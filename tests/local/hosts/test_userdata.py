import json

import pytest

from holdfast_local.hosts import BootError
from holdfast_local.hosts.userdata import node_config
from holdfast_node.contract.roles import DEFAULT_PORTS, Role

CONFIG = {
    "cluster": "demo",
    "role": "worker",
    "region": "us-east-1",
    "ports": DEFAULT_PORTS,
    **dict.fromkeys(("jobs_bucket", "models_bucket", "enrolment_function", "job_signing_key"), "x"),
    **dict.fromkeys(("model_signing_key", "log_group", "file_system_id", "access_point_id"), "x"),
    "bundle": {"bucket": "b", "key": "k", "sha256": "0" * 64},
}
DOCUMENT = json.dumps(CONFIG, indent=1)
START, END = "cat > /etc/holdfast/node.json <<'HOLDFAST_NODE_JSON'", "HOLDFAST_NODE_JSON"


def test_the_document_between_the_markers_is_read() -> None:
    config = node_config(f"#!/bin/bash\nset -eu\n{START}\n{DOCUMENT}\n{END}\necho done\n")
    assert config.role is Role.WORKER
    assert config.ports == DEFAULT_PORTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "one line that starts with 'cat > /etc/holdfast/node.json', got 0", id="empty"),
        pytest.param(f"{START}\n{END}\n{START}\n{END}\n", "got 2", id="twice"),
        pytest.param(
            f"{START}\n{DOCUMENT}\n", "lacks the line 'HOLDFAST_NODE_JSON' that ends node.json", id="cut-short"
        ),
        pytest.param(f"{START}\n{{\n{END}\n", "user data's node.json: NodeConfig is not valid JSON", id="not-json"),
        pytest.param(f"{START}\n{{}}\n{END}\n", "NodeConfig lacks the keys", id="wrong-schema"),
    ],
)
def test_other_user_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(BootError) as refused:
        node_config(text)
    assert message in str(refused.value)
