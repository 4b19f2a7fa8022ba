"""The node's configuration inside its user data.

The kit stamps a shell script whose here-document holds a `NodeConfig`. A booting instance runs the script; hosts
here read the document from it and take the same steps themselves.
"""

from holdfast_local.hosts.errors import BootError
from holdfast_node.contract.documents import NodeConfig
from holdfast_node.contract.errors import DocumentError

START = "cat > /etc/holdfast/node.json"
END = "HOLDFAST_NODE_JSON"


def node_config(user_data: str) -> NodeConfig:
    """Return the node configuration that user data writes.

    Raises:
        BootError: there is none, it is cut short, or it has not the schema; the message says which.
    """
    lines = user_data.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(START)]
    if len(starts) != 1:
        raise BootError(f"user data must have one line that starts with {START!r}, got {len(starts)}")
    body = lines[starts[0] + 1 :]
    if END not in body:
        raise BootError(f"user data lacks the line {END!r} that ends node.json")
    try:
        return NodeConfig.parse("\n".join(body[: body.index(END)]))
    except DocumentError as error:
        raise BootError(f"user data's node.json: {error}") from None
