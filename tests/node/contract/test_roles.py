from ipaddress import ip_address, ip_network

import pytest

from holdfast_node.contract.roles import (
    DIALS,
    MAX_NODES_PER_ROLE,
    OVERLAY_NETWORK,
    UNPROVEN_OVERLAY,
    Role,
    node_name,
    overlay_address,
    spiffe_id,
)


def test_address_strings_fall_as_ranks_rise_so_that_ps_lite_ranks_alike() -> None:
    addresses = [overlay_address(Role.WORKER, rank) for rank in range(MAX_NODES_PER_ROLE)]
    assert sorted(addresses, reverse=True) == addresses
    assert len(set(addresses)) == MAX_NODES_PER_ROLE


def test_overlay_addresses_of_all_roles_are_distinct() -> None:
    servers = {overlay_address(Role.SERVER, rank) for rank in range(MAX_NODES_PER_ROLE)}
    workers = {overlay_address(Role.WORKER, rank) for rank in range(MAX_NODES_PER_ROLE)}
    assert not servers & workers
    assert overlay_address(Role.SCHEDULER, 0) == "127.77.0.1" not in servers | workers


def test_the_address_that_proves_nobody_is_in_the_overlay_and_nobody_s() -> None:
    assert ip_address(UNPROVEN_OVERLAY) in ip_network(OVERLAY_NETWORK)
    nodes = {overlay_address(role, rank) for role in (Role.SERVER, Role.WORKER) for rank in range(MAX_NODES_PER_ROLE)}
    assert UNPROVEN_OVERLAY not in nodes | {overlay_address(Role.SCHEDULER, 0)}


@pytest.mark.parametrize(("role", "rank"), [(Role.SCHEDULER, 1), (Role.WORKER, -1), (Role.WORKER, MAX_NODES_PER_ROLE)])
def test_rank_outside_its_range_is_refused(role: Role, rank: int) -> None:
    with pytest.raises(ValueError, match="rank must be between 0 and 149"):
        overlay_address(role, rank)


def test_dialling_is_symmetric_and_never_within_a_role() -> None:
    for role, peers in DIALS.items():
        assert role not in peers
        assert all(role in DIALS[peer] for peer in peers)


def test_names_hold_role_cluster_and_instance() -> None:
    assert node_name("demo", Role.SERVER, "i-0123") == "i-0123.server.demo.holdfast"
    assert spiffe_id("demo", Role.SERVER, "i-0123") == "spiffe://demo/server/i-0123"
