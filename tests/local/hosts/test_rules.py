"""The security groups' rules as text; what they do to packets is in test_fabric.py."""

import subprocess

import pytest
from tests.local.hosts.lab import require

from holdfast_local.hosts.rules import Member, Permission, SecurityGroup, ruleset

WORKER = Member(port="sw1", address="10.0.0.4", groups=("sg-w",))
SERVER = Member(port="sw2", address="10.0.0.5", groups=("sg-s",))
ENDPOINT = Member(port="services", address="10.0.0.6", groups=("sg-e",))
GATEWAY = Member(port="services", address="198.51.100.1", groups=None)


def permission(
    protocol: str = "tcp", port: int | None = 9092, *, groups: tuple[str, ...] = (), cidrs: tuple[str, ...] = ()
) -> dict[str, object]:
    described: dict[str, object] = {"IpProtocol": protocol, "UserIdGroupPairs": [{"GroupId": g} for g in groups]}
    if port is not None:
        described |= {"FromPort": port, "ToPort": port}
    return described | {"IpRanges": [{"CidrIp": cidr} for cidr in cidrs]}


def group(
    name: str, *, ingress: list[dict[str, object]] | None = None, egress: list[dict[str, object]] | None = None
) -> dict[str, SecurityGroup]:
    described = {"GroupId": name, "IpPermissions": ingress or [], "IpPermissionsEgress": egress or []}
    return {name: SecurityGroup.parse(described)}


def test_a_rule_names_the_peer_groups_members_and_the_port() -> None:
    groups = group("sg-w", egress=[permission(groups=("sg-s",))]) | group(
        "sg-s", ingress=[permission(groups=("sg-w",))]
    )
    rules = ruleset((WORKER, SERVER), groups)
    assert "from_10_0_0_4 ip daddr { 10.0.0.5/32 } tcp dport 9092-9092 goto deliver" in rules
    assert "to_10_0_0_5 ip saddr { 10.0.0.4/32 } tcp dport 9092-9092 accept" in rules


def test_no_rule_allows_nothing() -> None:
    rules = ruleset((WORKER, SERVER), group("sg-w") | group("sg-s"))
    accepting = [line for line in rules.splitlines() if "accept" in line]
    assert accepting == ["add rule inet holdfast_fabric forward ct state established,related accept"]
    assert "goto deliver" not in rules


def test_a_group_that_is_not_described_allows_nothing() -> None:
    assert ruleset((WORKER,), {}) == ruleset((WORKER,), group("sg-w"))


def test_a_peer_group_without_members_gives_no_rule() -> None:
    assert "goto deliver" not in ruleset((WORKER,), group("sg-w", egress=[permission(groups=("sg-s",))]))


def test_every_member_may_only_send_from_its_own_address() -> None:
    lines = ruleset((WORKER, SERVER), {}).splitlines()
    checks = [line for line in lines if "spoofed drop" in line]
    assert 'iifname "sw1" ip saddr != { 10.0.0.4 } counter' in checks[0]
    assert 'iifname "sw2" ip saddr != { 10.0.0.5 } counter' in checks[1]
    # Before anything that accepts: a false source is no established connection either.
    assert lines.index(checks[-1]) < next(n for n, line in enumerate(lines) if line.endswith("accept"))


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        pytest.param(permission("-1", None, cidrs=("10.0.0.0/8",)), "ip daddr { 10.0.0.0/8 } goto", id="all-protocols"),
        pytest.param(permission("6", 443, cidrs=("10.0.0.0/8",)), "tcp dport 443-443 goto", id="by-number"),
        pytest.param(permission("udp", 53, cidrs=("10.0.0.2/32",)), "udp dport 53-53 goto", id="udp"),
        pytest.param(permission("icmp", -1, cidrs=("10.0.0.0/8",)), "meta l4proto icmp goto", id="icmp"),
        pytest.param(permission("tcp", None, cidrs=("10.0.0.0/8",)), "meta l4proto tcp goto", id="every-port"),
        pytest.param(
            permission("-1", None, cidrs=("10.0.0.0/8", "10.1.0.0/16"), groups=("sg-s",)),
            "ip daddr { 10.0.0.0/8 } goto",
            id="overlapping-ranges-are-merged",
        ),
    ],
)
def test_permissions_become_matches(described: dict[str, object], expected: str) -> None:
    assert expected in ruleset((WORKER, SERVER), group("sg-w", egress=[described]))


def listing(port: int = 443) -> dict[str, object]:
    return permission(port=port) | {"PrefixListIds": [{"PrefixListId": "pl-1"}]}


def test_a_prefix_list_stands_for_its_ranges() -> None:
    groups = group("sg-w", egress=[listing()])
    rules = ruleset((WORKER, GATEWAY), groups, prefix_lists={"pl-1": ["198.51.100.0/24"]})
    assert "from_10_0_0_4 ip daddr { 198.51.100.0/24 } tcp dport 443-443 goto deliver" in rules


def test_an_unknown_prefix_list_matches_nothing() -> None:
    assert "goto deliver" not in ruleset((WORKER,), group("sg-w", egress=[listing()]), prefix_lists={"pl-2": ["::/0"]})


def test_a_gateway_admits_whoever_may_go_out_to_it() -> None:
    rules = ruleset((WORKER, GATEWAY), {})
    admitting = [
        line for line in rules.splitlines() if "to_198_51_100_1 tcp" in line or "to_198_51_100_1 accept" in line
    ]
    assert admitting == ["add rule inet holdfast_fabric to_198_51_100_1 tcp dport 443 accept"]
    assert "goto deliver" not in rules  # nobody may


def test_members_of_one_port_send_from_its_addresses_only() -> None:
    rules = ruleset((GATEWAY, ENDPOINT), {})
    assert 'iifname "services" ip saddr != { 198.51.100.1, 10.0.0.6 } counter name spoofed drop' in rules


def test_members_reach_their_resolver_for_dns_past_all_groups() -> None:
    resolver = Member(port="services", address="10.0.0.2", groups=())
    rules = ruleset((WORKER,), {}, resolvers=[resolver])
    assert "ip saddr { 10.0.0.4 } ip daddr { 10.0.0.2 } meta l4proto { tcp, udp } th dport 53 accept" in rules
    assert "10.0.0.2 :" not in rules  # it is reached in no other way, and reaches nobody


def test_a_permission_keeps_its_port_range() -> None:
    parsed = Permission.parse({"IpProtocol": "tcp", "FromPort": 1024, "ToPort": 2048})
    assert parsed.ports == (1024, 2048)


def test_nftables_takes_the_rules_twice_and_keeps_its_counters() -> None:
    require("userns")
    everything = [permission(groups=("sg-s", "sg-w")), permission("-1", None, cidrs=("10.0.0.0/8",))]
    rules = ruleset((WORKER, SERVER), group("sg-w", egress=everything) | group("sg-s", ingress=everything))
    script = "nft -f - <<'X'\n" + rules + "X\nnft -f - <<'X'\n" + rules + "X\nnft list counters"
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec", script]
    listed = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    assert "counter refused" in listed.stdout
