"""In the agent's place and its unit: enrols with nobody, and does what the file /etc/holdfast/do says."""

import sys
import time
from pathlib import Path

import holdfast_node.agent  # noqa: F401 - all that the real one loads must load in its sandbox
from holdfast_node.contract.layout import NodePaths
from holdfast_node.presence import Pulse
from holdfast_node.systemd.notify import notify

order = Path("/etc/holdfast/do").read_text().split()
Pulse(NodePaths().alive("agent")).start()
if order[0] == "exit":
    sys.exit(int(order[1]))
if order[0] == "probe":
    sys.path.insert(0, str(Path(__file__).parent))
    import probe

    print(probe.report(), flush=True)
if order[0] != "wait":
    notify("READY=1")
time.sleep(600)
