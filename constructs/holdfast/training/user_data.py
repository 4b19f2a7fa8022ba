"""The script that turns a fresh instance into a node: `user_data.sh`, with the node's constants written into it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from holdfast.errors import PropertyError
from holdfast_node.contract.documents import Document, NodeConfig
from holdfast_node.contract.layout import JobsBucket

#: EC2 refuses more than 16 KiB of user data (EC2 user guide, "User data"); 2 KiB are left for what CloudFormation's
#: resolved values have more than tokens: 15 names and ARNs. Only a predictor with an authority of its clients' comes
#: near it.
MAX_SCRIPT_BYTES = 14 << 10
_SCRIPT = Path(__file__).with_name("user_data.sh")
_CONSTANT = re.compile(r"@([A-Z0-9_]+)@")


def node_user_data(config: NodeConfig) -> str:
    """Return the user data of a node with these constants; it holds no secret.

    Values may be CDK tokens; CloudFormation resolves them to ARNs, ids and names, which need no escaping in JSON or
    between single quotes.

    Raises:
        DocumentError: the constants are not a node's.
        PropertyError: the script is too long for EC2.
    """
    config.validate()
    config.bundle.validate()
    if config.wheelhouse is not None:
        config.wheelhouse.validate()
    constants = {
        "CONFIG": json.dumps(_chosen(config), sort_keys=True, separators=(",", ":")),
        "REGION": config.region,
        "ROLE": config.role.value,
        "JOBS_BUCKET": config.jobs_bucket,
        "LOG_GROUP": config.log_group,
        "CONTROL": JobsBucket.CONTROL,
    }
    script = _CONSTANT.sub(lambda found: constants[found[1]], _SCRIPT.read_text())
    if len(script.encode()) > MAX_SCRIPT_BYTES:
        raise PropertyError(
            f"a node's user data must be at most {MAX_SCRIPT_BYTES} bytes, got {len(script.encode())}; "
            "EC2 refuses more than 16384: use shorter names"
        )
    return script


def _chosen(document: Document) -> dict[str, Any]:
    """Return what a document says beyond its schema's defaults: a node that parses it has those of its own."""
    chosen: dict[str, Any] = {}
    for field in dataclasses.fields(document):
        value = getattr(document, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            chosen[field.name] = _chosen(value) if isinstance(value, Document) else value
    return chosen
