"""What the tests that boot share."""

import shutil
from typing import NoReturn

import pytest
from tests.boot.systemd_node import TOOLS
from tests.e2e.support import skip


def cannot_boot(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; a failure with CI=true if a tool is missing, which CI installs.

    Whether the kernel and whoever gave this machine let it boot another one is not in CI's hands.
    """
    if any(shutil.which(tool) is None for tool in (*TOOLS, "mmdebstrap")):
        skip(reason)
    pytest.skip(reason)
