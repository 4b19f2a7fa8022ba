"""Every row of the attack table: it succeeds on vanilla MXNet (or the table says why not), and Holdfast holds."""

import pytest
from tests.attacks.arenas import Arena
from tests.attacks.model import Attack
from tests.attacks.table import ATTACKS, THREATS

pytestmark = pytest.mark.attacks


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.id for attack in ATTACKS])
def test_holdfast_holds_where_vanilla_falls(arena: Arena, attack: Attack) -> None:
    wanted = (attack.vanilla_expected, attack.holdfast_expected)
    for outcome, expected in zip(attack.on_both(arena), wanted, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome.verdict is expected, outcome.evidence


def test_the_attacked_job_ends_well(arena: Arena) -> None:
    assert arena.holdfast.finish() > 0


def test_every_threat_is_attacked_and_every_row_has_a_name_of_its_own() -> None:
    assert {attack.threat for attack in ATTACKS} == set(THREATS)
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
