"""The script that turns a fresh instance into a node: write the constants, fetch and check the bundle, hand over."""

from holdfast.errors import PropertyError
from holdfast_node.contract.documents import NodeConfig

#: EC2 refuses more than 16 KiB of user data (EC2 user guide, "User data"); half of it is left for CloudFormation's
#: resolved values.
MAX_SCRIPT_BYTES = 8192
CONFIG_MARKER = "HOLDFAST_NODE_JSON"

_SCRIPT = """\
#!/bin/bash
# Holdfast node: constants and stage 0. Everything after this is in the bundle, which is checked before it runs.
set -euo pipefail
fail() {{ echo "holdfast: boot failed: $1" | tee /dev/console >&2; exit 1; }}
umask 022
install -d -m 0755 /etc/holdfast /opt/holdfast
cat > /etc/holdfast/node.json <<'{marker}'
{config}
{marker}

# /tmp is memory on Amazon Linux 2023: the bundle goes to disk.
bundle=$(mktemp /var/tmp/holdfast-bundle.XXXXXX)
trap 'rm -f "$bundle"' EXIT
for attempt in 1 2 3 4 5; do
  if aws s3api get-object --region '{region}' --bucket '{bucket}' --key '{key}' "$bundle" > /dev/null; then break; fi
  [ "$attempt" -lt 5 ] || fail "cannot fetch the node bundle s3://{bucket}/{key}"
  sleep $((attempt * 3))
done
echo '{sha256}  '"$bundle" | sha256sum --check --status || fail "the node bundle does not match its SHA-256"
python3 -m zipfile -e "$bundle" /opt/holdfast || fail "the node bundle cannot be unpacked"
[ -f /opt/holdfast/install.sh ] || fail "the node bundle holds no install.sh: it is for local hosts only"
rm -f "$bundle"  # the trap does not outlive exec
exec bash /opt/holdfast/install.sh
"""


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
    script = _SCRIPT.format(
        marker=CONFIG_MARKER,
        config=config.to_json().decode(),
        region=config.region,
        bucket=config.bundle.bucket,
        key=config.bundle.key,
        sha256=config.bundle.sha256,
    )
    if len(script.encode()) > MAX_SCRIPT_BYTES:
        raise PropertyError(
            f"a node's user data must be at most {MAX_SCRIPT_BYTES} bytes, got {len(script.encode())}; "
            "EC2 refuses more than 16384: use shorter names"
        )
    return script
