"""A job's seed: 256 bits from the operating system, and what each process of the job derives from it.

Seeds make training repeatable and protect nothing: they are written in the job's document and in its record. Keys,
tokens and names never come from them.
"""

import hashlib
import hmac
import re
import secrets

SEED_PATTERN = re.compile(r"[0-9a-f]{64}")
_DOMAIN = "holdfast seed 1"


def new_seed() -> str:
    """Return a fresh seed, 64 hex digits, from the operating system's generator."""
    return secrets.token_hex(32)


def parse_seed(text: str) -> str:
    """Return the seed that an operator means: 64 hex digits as they are, any other text by its SHA-256.

    Equal text gives the equal seed, so a recorded seed repeats its run, and so does `--seed 42`.
    """
    lowered = text.strip().lower()
    return lowered if SEED_PATTERN.fullmatch(lowered) else hashlib.sha256(text.encode()).hexdigest()


def derive(seed: str, *labels: str | int) -> str:
    """Return the seed (64 hex digits) for one purpose, such as `derive(seed, "worker", 0)`.

    HMAC-SHA256 under the seed, over length-prefixed labels: what HKDF-Expand (RFC 5869, section 2.3) gives for one
    block. Different labels give seeds that tell nothing of each other.

    Raises:
        ValueError: `seed` is not 64 hex digits.
    """
    if not SEED_PATTERN.fullmatch(seed):
        raise ValueError(f"a seed must be 64 hex digits, got {seed[:80]!r}")
    parts = [_DOMAIN, *map(str, labels)]
    message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return hmac.new(bytes.fromhex(seed), message + b"\x01", hashlib.sha256).hexdigest()


def whole_number(seed: str, bits: int) -> int:
    """Return the seed's first `bits` bits (at most 256) as a number, for generators that take no more."""
    return int(seed, 16) >> (256 - bits)
