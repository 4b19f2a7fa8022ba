"""Packs the wheels of a lock file when they are published: `python -m holdfast.wheels LOCK CACHE SHA256`.

The CDK command line runs this for an asset that names it, and publishes the file whose path is on standard output.
"""

import argparse
import sys
from pathlib import Path

from holdfast.errors import BundleError
from holdfast.packing import file_digest, pack_wheels


def recorded(lock: Path) -> str:
    """Return the SHA-256 (hex) of a lock's packed wheels, as recorded beside it in `NAME.sha256`.

    The record has lines as sha256sum writes them: the lock's own digest, and that of the zip. Wheels are locked by
    their digests and the zip's bytes depend on them alone, so it is known before anything is downloaded.

    Raises:
        BundleError: there is no record, or it is another lock's.
    """
    path = lock.with_suffix(".sha256")
    lines = dict(line.split()[::-1] for line in path.read_text().splitlines()) if path.is_file() else {}
    packed = lock.with_suffix(".zip").name
    if lines.get(lock.name) != file_digest(lock) or packed not in lines:
        raise BundleError(
            f"{path} must record the SHA-256 of {lock.name} as it is, and of {packed}, got {sorted(lines)}; "
            f"run python -m holdfast.wheels {lock} .build --record"
        )
    return lines[packed]


def main() -> int:
    """Pack the wheels, compare, and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.wheels", description=main.__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("sha256", nargs="?")
    parser.add_argument("--record", action="store_true", help="write the digest beside the lock instead")
    arguments = parser.parse_args()
    lock: Path = arguments.lock
    try:
        target, sha256 = pack_wheels(lock, arguments.cache)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.record:
        record = f"{file_digest(lock)}  {lock.name}\n{sha256}  {lock.with_suffix('.zip').name}\n"
        lock.with_suffix(".sha256").write_text(record)
    elif sha256 != arguments.sha256:
        print(
            f"error: the wheels of {lock} must pack to the SHA-256 {arguments.sha256}, got {sha256}; the lock and its "
            "record are not of one version, or the packing has changed: record it anew with --record, and deploy again",
            file=sys.stderr,
        )
        return 1
    print(target.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
