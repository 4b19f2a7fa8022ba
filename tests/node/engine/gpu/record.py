"""Records what MXNet's CUDA build and the locked wheels around it link and provide, from an installed environment.

    make .venv-gpu/.ready && .venv/bin/python tests/node/engine/gpu/record.py > tests/node/engine/gpu/libraries.json

Names come from each library's dynamic section (`readelf -d`), the GPUs that MXNet has machine code for from the headers
of its "fat binaries": 16 bytes with a magic number and a size, then entries of a kind (1: PTX, 2: machine code), a
header's and a payload's size, and at byte 28 the compute capability that they are for.
"""

import json
import mmap
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
LOCK = ROOT / "node/requirements-gpu.txt"
_MAGIC = b"\x50\xed\x55\xba"
_KINDS = {1: "ptx", 2: "machine code"}


def pins() -> dict[str, str]:
    """Return the locked versions of MXNet and NVIDIA's wheels."""
    return dict(re.findall(r"^((?:mxnet|nvidia)[a-z0-9-]*)==(\S+)", LOCK.read_text(), re.M))


def capabilities(path: Path) -> dict[str, list[int]]:
    """Return the compute capabilities, times ten, that a library has PTX and machine code for."""
    found: dict[str, set[int]] = {kind: set() for kind in _KINDS.values()}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_MAGIC)
        while start >= 0:
            version, header, size = struct.unpack_from("<HHQ", data, start + 4)
            if (version, header) == (1, 16) and start + header + size <= len(data):
                entry, end = start + header, start + header + size
                while entry + 64 <= end:
                    kind, _, header_size, payload = struct.unpack_from("<HHIQ", data, entry)
                    if kind not in _KINDS:
                        break
                    found[_KINDS[kind]].add(struct.unpack_from("<I", data, entry + 28)[0])
                    entry += header_size + payload
            start = data.find(_MAGIC, start + 4)
    return {kind: sorted(values) for kind, values in found.items()}


def dynamic(path: Path) -> dict[str, Any]:
    """Return a library's own name and those that it links."""
    text = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
    (name,) = re.findall(r"\(SONAME\).*\[(.*)\]", text)
    return {"name": name, "needs": re.findall(r"\(NEEDED\).*\[(.*)\]", text)}


def record(site: Path) -> dict[str, Any]:
    """Return the record of an environment's `site-packages`."""
    paths = sorted([*site.glob("mxnet/lib*.so*"), *site.glob("nvidia/*/lib/lib*.so*")])
    own = [path for path in paths if not path.is_symlink() and path.name != "libcuda.so.1"]
    return {
        "pins": pins(),
        "libraries": {path.relative_to(site).as_posix(): dynamic(path) for path in own},
        "mxnet": capabilities(site / "mxnet/libmxnet.so"),
    }


if __name__ == "__main__":
    (site,) = (ROOT / ".venv-gpu/lib").glob("python*/site-packages")
    print(json.dumps(record(site), indent=1, sort_keys=True))
