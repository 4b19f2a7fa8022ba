"""Builds the library that gives each host a private overlay where hosts share one loopback interface."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from holdfast_local.hosts.errors import IsolationError

_SOURCE = Path(__file__).with_name("overlay.c")
_COMPILE_SECONDS = 60
#: Host n's overlay is 127.(100+n).0.0/16, clear of the overlay itself (77) and of the hosts' addresses (78).
_FIRST_OCTET = 100
MAX_HOSTS = 150


def host_address(slot: int) -> str:
    """Return the "real" address of the host in this slot (from 1), which every process of the machine can reach."""
    return f"127.78.0.{slot}"


def overlay_library(slot: int, directory: Path) -> Path:
    """Return the library for the host in this slot, built below `directory` if it is not there yet.

    Raises:
        IsolationError: there is no C compiler, or it fails.
    """
    if not 1 <= slot <= MAX_HOSTS:
        raise IsolationError(f"hosts on shared loopback must be between 1 and {MAX_HOSTS}, got number {slot}")
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    library = directory / f"overlay-{slot}-{digest}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc")
    if compiler is None:
        raise IsolationError(
            "hosts on shared loopback need a C compiler to keep their overlays apart, and cc was not found; "
            "install the package gcc, or let hosts have namespaces (run as root, or allow user namespaces)"
        )
    directory.mkdir(parents=True, exist_ok=True)
    temporary = library.with_suffix(".tmp")
    argv = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", f"-DOCTET={_FIRST_OCTET + slot}"]
    argv += ["-o", str(temporary), str(_SOURCE), "-ldl"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
    if result.returncode:
        raise IsolationError(f"cc could not build the overlay library: {result.stderr.strip()[-500:]}")
    temporary.replace(library)
    return library
