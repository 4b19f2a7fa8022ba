"""The manifest of a checkpoint: its place in the order, its metrics, and the SHA-256 of every file.

Format 2, JSON: `{"format", "name", "sequence", "created", "metrics", "files": {path: {"sha256", "size"}}, "sha256"}`,
where the last is the digest of the manifest without it, in the form that `to_json` writes.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.retention import Entry

MANIFEST = "manifest.json"
FORMAT = 2
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: More than a checkpoint of 100,000 files needs; a larger one is no manifest.
_MAX_BYTES = 64 << 20


class CheckpointError(HoldfastError):
    """A checkpoint cannot be written, or one that was asked for is not whole."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself. `created` is seconds since the epoch, by its writer's clock."""

    name: str
    sequence: int
    created: int
    metrics: dict[str, float | None]
    files: dict[str, dict[str, str | int]]

    @classmethod
    def of(cls, path: Path) -> "Manifest":
        """Return the manifest of the checkpoint in this directory; its files are not looked at.

        Raises:
            CheckpointError: it has none, or one that is damaged, or of another checkpoint or format.
        """
        try:
            with (path / MANIFEST).open("rb") as file:
                fields = json.loads(file.read(_MAX_BYTES))
            digest, version = fields.pop("sha256"), fields.pop("format")
            manifest = cls(**fields)
            well_formed = (version, manifest.name) == (FORMAT, path.name) and manifest._is_typed()
        except OSError as error:
            raise CheckpointError(f"{path.name} has no manifest ({error.strerror}): it was not completed") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path.name} has a damaged manifest ({type(error).__name__})") from None
        if not well_formed:
            raise CheckpointError(f"{path.name} has a manifest of another checkpoint or format")
        if digest != manifest.sha256:
            raise CheckpointError(f"{path.name} has a manifest that was changed after it was written")
        return manifest

    @property
    def sha256(self) -> str:
        """The digest of this manifest, and so of everything in the checkpoint."""
        return hashlib.sha256(self._body()).hexdigest()

    @property
    def entry(self) -> Entry:
        """The checkpoint as retention sees it."""
        return Entry(self.name, self.sequence, self.created, self.metrics)

    def to_json(self) -> bytes:
        """Return the manifest as the bytes of its file."""
        return json.dumps(json.loads(self._body()) | {"sha256": self.sha256}, indent=1, sort_keys=True).encode()

    def check(self, path: Path, name: str, actual: dict[str, str | int]) -> None:
        """Raise CheckpointError, naming the file, unless it has this digest and size."""
        expected = self.files.get(name)
        if expected is None:
            raise CheckpointError(f"{path.name} has no {name} in its manifest")
        if actual != expected:
            raise CheckpointError(
                f"{path.name}: {name} must have sha256 {expected['sha256']} and {expected['size']} bytes, "
                f"got {actual['sha256']} and {actual['size']}"
            )

    def _body(self) -> bytes:
        fields = asdict(self) | {"format": FORMAT}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def _is_typed(self) -> bool:
        numbers: list[Any] = [self.sequence, self.created]
        return (
            all(type(number) is int for number in numbers)
            and all(value is None or math.isfinite(value) for value in self.metrics.values())
            and all(set(entry) == {"sha256", "size"} for entry in self.files.values())
        )


def describe(path: Path) -> dict[str, str | int]:
    """Return the SHA-256 (hex) and the size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"sha256": digest.hexdigest(), "size": size}
