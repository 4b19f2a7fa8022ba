import hashlib
import hmac
import re

import pytest

from holdfast_node.contract.seeds import derive, new_seed, parse_seed, whole_number

SEED = "0f" * 32


def test_fresh_seeds_are_256_bits_and_never_the_same() -> None:
    seeds = {new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(re.fullmatch("[0-9a-f]{64}", seed) for seed in seeds)


def test_a_recorded_seed_is_taken_as_it_is_and_other_text_by_its_digest() -> None:
    assert parse_seed(SEED) == parse_seed(f" {SEED.upper()} ") == SEED
    assert parse_seed("42") == hashlib.sha256(b"42").hexdigest()
    assert parse_seed("42") != parse_seed("43")


def test_derived_seeds_are_hmac_sha256_over_the_labels() -> None:
    message = b"".join(len(part).to_bytes(4, "big") + part for part in (b"holdfast seed 1", b"worker", b"3")) + b"\x01"
    assert derive(SEED, "worker", 3) == hmac.new(bytes.fromhex(SEED), message, hashlib.sha256).hexdigest()


def test_each_role_rank_and_purpose_has_its_own_seed() -> None:
    labels = [("worker", 0), ("worker", 1), ("server", 0), ("worker", 0, "numpy"), ("worker0",), ("worker", "0 ")]
    assert len({derive(SEED, *each) for each in labels} | {derive("00" * 32, "worker", 0)}) == len(labels) + 1


@pytest.mark.parametrize("seed", ["", "0f" * 31, "0F" * 32, "zz" * 32])
def test_a_seed_that_is_none_is_refused(seed: str) -> None:
    with pytest.raises(ValueError, match="a seed must be 64 hex digits, got"):
        derive(seed, "worker", 0)


def test_a_generator_gets_the_first_bits() -> None:
    assert whole_number("f" * 64, 31) == 2**31 - 1
    assert whole_number("00ff" + "0" * 60, 16) == 0xFF
