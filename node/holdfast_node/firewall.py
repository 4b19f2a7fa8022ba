"""The node's own nftables rules, set by root once before any service starts.

They hold what security groups cannot see: which user on this node may talk to what. The trainer reaches the
overlay and nothing else; only tunnel and trainer reach the overlay; only the agent reaches the metadata service
and AWS; a peer gets a bounded number of connections and handshakes. Security groups stay the outer fence.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import OVERLAY_NETWORK, NodeRole, Role

#: Instance metadata, https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
METADATA_ADDRESS = "169.254.169.254"

#: Connections at once and new ones per second that one peer address may open to the role port. A worker needs one
#: to each server and to the scheduler, and ps-lite opens a second while it reconnects; 4,500 idle connections
#: cost an unlimited stunnel 391 MiB, a limited one 14 MiB.
PEER_CONNECTIONS = 32
PEER_HANDSHAKES_PER_SECOND = 20

_RULES = """\
table inet holdfast
delete table inet holdfast
table inet holdfast {{
  set peers {{ type ipv4_addr; flags dynamic; size 65536; }}
  set handshakes {{ type ipv4_addr; flags dynamic,timeout; timeout 10s; size 65536; }}

  chain input {{
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state established,related accept
    ct state invalid counter drop
    tcp dport {port} ct state new jump peer
    counter comment "refused-input"
  }}

  chain peer {{
    update @handshakes {{ ip saddr limit rate over {rate}/second burst {burst} packets }} counter drop
    add @peers {{ ip saddr ct count over {connections} }} counter drop
    accept
  }}

  chain output {{
    type filter hook output priority filter; policy accept;
    ct state established,related accept
    ip daddr {overlay} meta skuid {{ {tunnel}, {trainer} }} accept
    ip daddr {overlay} meta skuid != 0 counter reject comment "overlay-foreign-uid"
    meta skuid {trainer} counter reject comment "trainer-off-overlay"
    ip daddr {metadata} meta skuid {{ 0, {agent} }} accept
    ip daddr {metadata} counter reject comment "metadata-foreign-uid"
    meta skuid {tunnel} tcp dport {{ {ports} }} oif != lo accept
    meta skuid {tunnel} counter reject comment "tunnel-off-role-ports"
  }}
}}
"""


def ruleset(*, role: NodeRole, ports: dict[Role, int], uids: dict[User, int], port: int | None = None) -> str:
    """Return the nftables rules of a node; applying them twice gives the same table.

    `port` is where it listens; default: its role's.
    """
    return _RULES.format(
        port=port or ports[Role(role)],
        ports=", ".join(str(ports[peer]) for peer in Role),
        rate=PEER_HANDSHAKES_PER_SECOND,
        burst=2 * PEER_HANDSHAKES_PER_SECOND,
        connections=PEER_CONNECTIONS,
        overlay=OVERLAY_NETWORK,
        metadata=METADATA_ADDRESS,
        agent=uids[User.AGENT],
        tunnel=uids[User.TUNNEL],
        trainer=uids[User.TRAINER],
    )


def apply(rules: str) -> None:
    """Load the rules in one transaction.

    Raises:
        HoldfastError: nft is missing or refuses them; the node must not go on.
    """
    if shutil.which("nft") is None:
        raise HoldfastError("nft was not found; install the package nftables")
    result = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, timeout=30, check=False)
    if result.returncode:
        raise HoldfastError(f"nft refused the node's rules: {result.stderr.strip()}")


def main() -> int:
    """Apply the rules of the node that is configured below `--root`."""
    parser = argparse.ArgumentParser(description="Set the node's firewall.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    paths = NodePaths(parser.parse_args().root)
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        apply(ruleset(role=config.role, ports=config.ports, uids=UIDS, port=config.port))
    except (HoldfastError, OSError) as error:
        print(f"firewall: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
