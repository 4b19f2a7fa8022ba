"""Runs user data as the root of a machine that is a copy of this one: an overlay in namespaces of its own.

What it cannot have there is replaced by commands that note how they were called: `aws` hands out files, `systemctl`,
`systemd-run` and `mount` do nothing. What the script itself does is real: files, users, Python packages, time-outs.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INSTANCE_ID = "i-0123456789abcdef0"
ROLE_CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
SECONDS = 300

#: Hands out what the machine has below /given, by the object's name; `put` is what the node stores.
AWS = """
case "$2 $*" in
  get-object*) name="$*"; name=${name##*--key }; cp "/given/objects/$(basename "${name%% *}")" "${@: -1}" ;;
  put-object*) cp "${@: -1}" /given/stored.json ;;
esac
"""
NOTHING = "exit 0"

_METADATA = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        self.answer(b"token")
    def do_GET(self):
        self.answer(b"node" if self.path.endswith("/") else b"{}")
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("169.254.169.254", 80), Answer).serve_forever()
"""

_SETUP = """
set -eu
cd "$1"
mount -t tmpfs -o size=2g tmpfs machine
mkdir machine/upper machine/work machine/root
mount -t overlay overlay -o lowerdir=/,upperdir="$1/machine/upper",workdir="$1/machine/work" machine/root
root=$1/machine/root
mount -t proc proc "$root/proc"
for name in run tmp dev; do mount -t tmpfs tmpfs "$root/$name"; done
mknod -m 666 "$root/dev/null" c 1 3; mknod -m 666 "$root/dev/urandom" c 1 9
mkfifo "$root/dev/console"; ln -s /proc/self/fd "$root/dev/fd"
mkdir -p "$root/var/lib/cloud/data"
echo "$2" > "$root/var/lib/cloud/data/instance-id"
mkdir "$root/given"
mount --rbind given "$root/given"
ip link set lo up
ip address add 169.254.169.254/32 dev lo
# The console is opened anew for each line: a pipe that stays open keeps them all.
exec 9<> "$root/dev/console"
cat <&9 > given/console &
[ ! -e given/metadata.py ] || { python3 given/metadata.py & }
[ ! -e given/before.sh ] || root=$root bash -eu given/before.sh
status=0
path=/given/bin:/usr/sbin:/usr/bin:/sbin:/bin
env -i PATH=$path chroot "$root" bash /given/user-data > given/output 2>&1 || status=$?
echo END >&9
until grep -q '^END$' given/console; do sleep 0.05; done
cp "$root/var/log/holdfast/boot.log" given/boot.log 2> /dev/null || true
cp "$root/etc/fstab" given/fstab
exit "$status"
"""


@dataclass(frozen=True, kw_only=True)
class Boot:
    """What a boot left: its exit status, what it said, the phases of its log, and how it called other commands."""

    status: int
    output: str
    console: str
    phases: list[dict[str, Any]]
    calls: list[str]
    stored: dict[str, Any] | None
    fstab: str
    folder: Path = field(repr=False)

    @property
    def last(self) -> dict[str, Any]:
        return self.phases[-1]


def boot(
    folder: Path,
    script: str,
    *,
    objects: Mapping[str, bytes | Path],
    commands: Mapping[str, str] | None = None,
    metadata: bool = True,
    before: str = "",
) -> Boot:
    """Run the user data `script` and return what came of it.

    Args:
        folder: an empty directory; it keeps what the boot left below `given`.
        script: the user data.
        objects: what S3 holds, by the last part of the key.
        commands: the bodies of bash scripts that stand for commands; by default those of this module's docstring.
        metadata: whether the metadata service answers.
        before: bash that runs just before as root, outside: the machine's tree is at `$root`.
    """
    given = folder / "given"
    (given / "bin").mkdir(parents=True)
    (given / "objects").mkdir()
    (folder / "machine").mkdir()
    for name, content in objects.items():
        if isinstance(content, Path):
            shutil.copyfile(content, given / "objects" / name)
        else:
            (given / "objects" / name).write_bytes(content)
    bodies = {"aws": AWS, **dict.fromkeys(("systemctl", "systemd-run", "mount"), NOTHING), **(commands or {})}
    for name, body in bodies.items():
        (given / "bin" / name).write_text(f'#!/bin/bash\necho "{name} $*" >> /given/calls\n{body}\n')
        (given / "bin" / name).chmod(0o755)
    (given / "user-data").write_text(script)
    if metadata:
        (given / "metadata.py").write_text(_METADATA)
    if before:
        (given / "before.sh").write_text(before)
    argv = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", _SETUP, "boot"]
    done = subprocess.run(
        [*argv, str(folder), INSTANCE_ID], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if not (given / "console").exists():
        raise RuntimeError(f"the machine was not set up: {done.stderr}")
    log, stored, calls = given / "boot.log", given / "stored.json", given / "calls"
    return Boot(
        status=done.returncode,
        output=(given / "output").read_text(),
        console=(given / "console").read_text().removesuffix("END\n"),
        phases=[json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [],
        calls=calls.read_text().splitlines() if calls.exists() else [],
        stored=json.loads(stored.read_text()) if stored.exists() else None,
        fstab=(given / "fstab").read_text(),
        folder=given,
    )
