"""The metadata service's rules, and one round trip over a socket; inside hosts it is in test_hosts.py."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message

import pytest

from holdfast_local.hosts.metadata import TOKEN_HEADER, TOKEN_PATH, TTL_HEADER, Metadata, MetadataServer, leaves
from holdfast_local.hosts.namespaces import listen

INSTANCE = {
    "InstanceId": "i-0123456789abcdef0",
    "InstanceType": "m7i.large",
    "ImageId": "ami-1",
    "Placement": {"AvailabilityZone": "eu-west-1b"},
}
PROFILE = {"Arn": "arn:aws:iam::1:instance-profile/p", "InstanceProfileId": "AIPA"}


def headers(**given: str) -> Message:
    message = Message()
    for name, value in given.items():
        message[name.replace("_", "-")] = value
    return message


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metadata(clock: Clock) -> Metadata:
    known = leaves(instance=INSTANCE, address="10.0.0.4", region="eu-west-1", account="1", profile=PROFILE)
    return Metadata(leaves={**known, "user-data": "#!/bin/sh"}, clock=clock)


def token(metadata: Metadata, ttl: str = "60") -> str:
    status, value = metadata.put(TOKEN_PATH, headers(**{TTL_HEADER: ttl}))
    assert status == 200
    return value


def get(metadata: Metadata, path: str, value: str | None = None) -> tuple[int, str]:
    return metadata.get(path, headers(**{TOKEN_HEADER: value} if value is not None else {}))


def test_a_token_opens_every_leaf(metadata: Metadata) -> None:
    value = token(metadata)
    assert get(metadata, "/latest/meta-data/instance-id", value) == (200, INSTANCE["InstanceId"])
    assert get(metadata, "/latest/meta-data/local-ipv4", value) == (200, "10.0.0.4")
    assert get(metadata, "/latest/meta-data/placement/region", value) == (200, "eu-west-1")
    assert get(metadata, "/latest/user-data", value) == (200, "#!/bin/sh")
    document = json.loads(get(metadata, "/latest/dynamic/instance-identity/document", value)[1])
    assert (document["instanceId"], document["privateIp"]) == (INSTANCE["InstanceId"], "10.0.0.4")


@pytest.mark.parametrize("value", [None, "", "guess", "é"], ids=["version-1", "empty", "guessed", "not-ascii"])
def test_without_a_valid_token_nothing_is_told(metadata: Metadata, value: str | None) -> None:
    token(metadata)
    assert get(metadata, "/latest/meta-data/instance-id", value) == (401, "")
    assert get(metadata, "/latest/no/such/leaf", value) == (401, "")


def test_a_token_ends(metadata: Metadata, clock: Clock) -> None:
    value = token(metadata, "60")
    clock.now += 61
    assert get(metadata, "/latest/meta-data/instance-id", value) == (401, "")


def test_another_hosts_token_is_no_token(metadata: Metadata) -> None:
    other = Metadata(leaves=metadata.leaves)
    assert get(metadata, "/latest/meta-data/instance-id", token(other)) == (401, "")


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "x", "9" * 30], ids=repr)
def test_an_impossible_lifetime_gives_no_token(metadata: Metadata, ttl: str) -> None:
    assert metadata.put(TOKEN_PATH, headers(**{TTL_HEADER: ttl})) == (400, "")


def test_no_token_through_a_proxy(metadata: Metadata) -> None:
    given = headers(**{TTL_HEADER: "60", "X_Forwarded_For": "10.0.0.9"})
    assert metadata.put(TOKEN_PATH, given) == (403, "")


def test_tokens_are_given_at_one_path_only(metadata: Metadata) -> None:
    assert metadata.put("/latest/meta-data/", headers(**{TTL_HEADER: "60"})) == (404, "")


def test_a_folder_lists_its_entries(metadata: Metadata) -> None:
    value = token(metadata)
    status, listed = get(metadata, "/latest/meta-data/placement/", value)
    assert (status, listed.splitlines()) == (200, ["availability-zone", "region"])
    assert "placement/" in get(metadata, "/latest/meta-data/", value)[1].splitlines()


@pytest.mark.parametrize("path", ["/latest/meta-data/no", "/1.0/meta-data/", "/latest/meta-data/../user-data"])
def test_an_unknown_path_is_not_found(metadata: Metadata, path: str) -> None:
    assert get(metadata, path, token(metadata))[0] == 404


def test_every_version_gives_the_same_and_the_root_lists_them(metadata: Metadata) -> None:
    value = token(metadata)
    versions = get(metadata, "/", value)[1].splitlines()
    assert {"2009-04-04", "2021-03-23", "latest"} <= set(versions)
    for version in versions:
        assert get(metadata, f"/{version}/meta-data/instance-id", value) == (200, INSTANCE["InstanceId"])


def test_an_interface_is_described_where_there_is_one(clock: Clock) -> None:
    given = {**INSTANCE, "SecurityGroups": [{"GroupId": "sg-1"}, {"GroupId": "sg-2"}]}
    about = {"instance": given, "address": "10.0.0.4", "region": "eu-west-1", "account": "1" * 12, "profile": None}
    known = leaves(**about, mac="02:00:00:00:00:01")
    assert known["meta-data/mac"] == "02:00:00:00:00:01"
    below = "meta-data/network/interfaces/macs/02:00:00:00:00:01"
    assert (known[f"{below}/local-ipv4s"], known[f"{below}/security-group-ids"]) == ("10.0.0.4", "sg-1\nsg-2")
    assert known["meta-data/local-hostname"] == "ip-10-0-0-4.eu-west-1.compute.internal"
    assert not [name for name in leaves(**about) if "macs" in name]


def test_a_leaf_that_fails_is_unavailable_and_its_cause_is_told_outside_only(clock: Clock) -> None:
    told: list[str] = []

    def fail() -> str:
        raise OSError("sts is away")

    metadata = Metadata(leaves={"meta-data/x": fail}, clock=clock, on_error=told.append)
    assert get(metadata, "/latest/meta-data/x", token(metadata)) == (503, "")
    assert told == ["meta-data/x: sts is away"]


@pytest.fixture
def url(metadata: Metadata) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    server = MetadataServer(listener, metadata)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.close()


def test_it_serves_version_2_over_http_and_refuses_version_1(url: str) -> None:
    ask = urllib.request.Request(f"{url}/latest/api/token", method="PUT", headers={TTL_HEADER: "60"})
    with urllib.request.urlopen(ask, timeout=5) as answer:
        value = answer.read().decode()
    ask = urllib.request.Request(f"{url}/latest/meta-data/instance-id", headers={TOKEN_HEADER: value})
    with urllib.request.urlopen(ask, timeout=5) as answer:
        assert answer.read().decode() == INSTANCE["InstanceId"]
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"{url}/latest/meta-data/instance-id", timeout=5)
    refused.value.close()
