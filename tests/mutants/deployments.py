"""The deployments whose templates are judged: each settings file, and one with all that a file may ask for besides."""

import os
from pathlib import Path
from typing import Any

from tests.kit.posture.model import Template
from tests.kit.posture.rules import read
from tests.kit.support import synthesize

# Before anything imports the CDK, which would warn of a distribution's Node.js.
os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "18,20")

Changes = dict[str, dict[str, Any]]
#: By name: the settings file, and what is changed in it.
DEPLOYMENTS: dict[str, tuple[str, Changes]] = {
    "local": ("local", {}),
    "dev": ("dev", {}),
    "prod": ("prod", {}),
    "full": (
        "dev",
        {
            "cluster": {"remote_access": "session-manager", "dedicated_tenancy": True},
            "identity": {"ca_generation": 2, "ca_overlap": True},
            "images": {"pipeline": True, "baked": True},
            "predictor": {"job": "digits-1", "client_ranges": ["10.1.0.0/16"]},
        },
    ),
    "private-ca": (
        "dev",
        {
            "identity": {
                "private_ca_arn": "arn:aws:acm-pca:us-east-1:111122223333:certificate-authority/"
                "12345678-1234-1234-1234-123456789012"
            }
        },
    ),
}


def templates_of(name: str, folder: Path) -> dict[str, Template]:
    """Synthesize one of the deployments into a folder, and return its templates by part."""
    settings, changes = DEPLOYMENTS[name]
    synthesize(folder, changes, settings)
    return read(folder)
