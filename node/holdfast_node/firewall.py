"""The node's own nftables rules, set by root once before any service starts.

They hold what security groups cannot see: which user on this node may talk to what. The trainer reaches the
overlay and nothing else; only tunnel and trainer reach the overlay; only the agent reaches the metadata service
and AWS; a peer gets a bounded number of connections and handshakes. Security groups stay the outer fence.

A node of a job admits nobody until its peers are known. Then the `peers` service leads each peer's address to the
port at which the tunnel accepts that peer's certificate alone (docs/adr/0011): a certificate is worth nothing at
another address, and an address that is not in the job does not reach the tunnel at all.
"""

import argparse
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from holdfast_node.contract.documents import NodeConfig, Rendezvous
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import UIDS, NodePaths, User
from holdfast_node.contract.roles import (
    FIRST_PEER_PORT,
    LAST_PEER_PORT,
    OVERLAY_NETWORK,
    NodeRole,
    Role,
    peer_port,
)

#: Instance metadata, https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
METADATA_ADDRESS = "169.254.169.254"

#: Connections at once, and new ones per second (a burst of twice that), that one peer address may open. Measured at
#: 1 + 8 + 16 nodes: a peer needs two to the scheduler or to a server and one to a worker; one that waits for a trainer
#: to start tries again ten times a second (ZeroMQ's reconnect interval). A connection costs stunnel a thread and 90
#: KiB, a handshake 2 ms of CPU: a hostile peer gets 16 threads and 4 % of one CPU. The limits are by address, so they
#: fit any number of peers.
PEER_CONNECTIONS = 16
PEER_HANDSHAKES_PER_SECOND = 20

NFT_SECONDS = 30
#: A rendezvous of 301 peers is 40 KB of JSON.
_MAX_PEERS_BYTES = 1 << 20

_RULES = """\
table inet holdfast
delete table inet holdfast
table inet holdfast {{
  set peers {{ type ipv4_addr; flags dynamic; size 65536; }}
  set handshakes {{ type ipv4_addr; flags dynamic,timeout; timeout 10s; size 65536; }}
{admission}
  chain input {{
    type filter hook input priority filter; policy drop;
    iif lo accept
    ct state established,related accept
    ct state invalid counter drop
    {accepted} ct state new jump peer
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


#: The tunnel's ports are reached only by connections that were made to the role port: nobody picks a peer's port.
_ADMISSION = """
  map admitted {{ type ipv4_addr : inet_service; }}

  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    iif != lo tcp dport {port} redirect to : ip saddr map @admitted
  }}
"""
_ADMITTED = "tcp dport {first}-{last} ct original proto-dst {port}"


def ruleset(*, role: NodeRole, ports: dict[Role, int], uids: dict[User, int], port: int | None = None) -> str:
    """Return the nftables rules of a node; applying them twice gives the same table, without admitted peers.

    `port` is where it listens; default: its role's. A node outside jobs listens to whom its security group lets in.
    """
    port = port or ports[Role(role)]
    in_job = isinstance(role, Role)
    return _RULES.format(
        admission=_ADMISSION.format(port=port) if in_job else "",
        accepted=_ADMITTED.format(first=FIRST_PEER_PORT, last=LAST_PEER_PORT, port=port)
        if in_job
        else f"tcp dport {port}",
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


def admission(*, role: Role, rendezvous: Rendezvous) -> str:
    """Return the commands that make the peers of this job the only addresses that a node of `role` admits.

    Connections that stand already stay.
    """
    peers = [f"{peer.address} : {peer_port(peer.role, peer.rank)}" for peer in rendezvous.dialled_by(role)]
    elements = f"add element inet holdfast admitted {{ {', '.join(peers)} }}\n" if peers else ""
    return f"flush map inet holdfast admitted\n{elements}"


def read_peers(path: Path) -> Rendezvous:
    """Return the rendezvous that the agent has left; this is root's, so nothing is followed and much is refused.

    Raises:
        HoldfastError: there is no such file, or it is not a rendezvous.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HoldfastError(f"cannot read {path.name}: {error.strerror}; the agent writes it for a job") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HoldfastError(f"{path.name} must be a plain file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(_MAX_PEERS_BYTES + 1)
    if len(data) > _MAX_PEERS_BYTES:
        raise HoldfastError(f"{path.name} must have at most {_MAX_PEERS_BYTES} bytes, and has more")
    return Rendezvous.parse(data)


def apply(rules: str) -> None:
    """Load the rules in one transaction.

    Raises:
        HoldfastError: nft is missing, refuses them, or hangs; the node must not go on.
    """
    if shutil.which("nft") is None:
        raise HoldfastError("nft was not found; install the package nftables")
    try:
        result = subprocess.run(
            ["nft", "-f", "-"], input=rules, text=True, capture_output=True, timeout=NFT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"nft did not end within {NFT_SECONDS} s; another process may hold nftables") from None
    if result.returncode:
        raise HoldfastError(f"nft refused the node's rules: {result.stderr.strip()}")


def main() -> int:
    """Apply the rules of the node that is configured below `--root`, or admit its job's peers."""
    parser = argparse.ArgumentParser(description="Set the node's firewall.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--admit-peers", action="store_true", help="admit the addresses of the job that the agent left")
    arguments = parser.parse_args()
    paths = NodePaths(arguments.root)
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        if arguments.admit_peers:
            apply(admission(role=Role(config.role), rendezvous=read_peers(paths.peers)))
            return 0
        apply(ruleset(role=config.role, ports=config.ports, uids=UIDS, port=config.port))
    except (HoldfastError, OSError) as error:
        print(f"firewall: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
