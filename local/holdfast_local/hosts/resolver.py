"""A VPC's DNS resolver: answers names that the VPC knows, after its DNS firewall. Takes bytes, returns bytes.

RFC 1035 for the messages; RFC 2308 for what is not there. It resolves nothing elsewhere: no host has a way there.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

_HEADER = struct.Struct("!6H")
_A, _IN = 1, 1
_RESPONSE, _OPCODE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x7800, 0x0100, 0x0080
_NO_ERROR, _FORMAT_ERROR, _NAME_ERROR, _NOT_IMPLEMENTED = 0, 1, 3, 4
_TTL_SECONDS = 60
MAX_MESSAGE_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class FirewallRule:
    """A rule of DNS Firewall: whether names that match one of `domains` are let through.

    A domain is a name, `*.` and a name for every name below it, or `*` for all names.
    """

    allow: bool
    domains: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Zone:
    """What a resolver knows: addresses by name (`*.name` is every name below it), and the firewall's rules in order."""

    names: Mapping[str, Sequence[str]]
    firewall: Sequence[FirewallRule] = ()

    def addresses(self, name: str) -> Sequence[str] | None:
        """Return the addresses of a name, or None if there is no such name or the firewall blocks it.

        The first rule that matches decides; a name that no rule matches passes (Route 53 Developer Guide, "DNS
        Firewall rule groups and rules").
        """
        verdict = next((rule.allow for rule in self.firewall if any(matches(name, d) for d in rule.domains)), True)
        if not verdict:
            return None
        exact = self.names.get(name)
        if exact is not None:
            return exact
        return next((value for key, value in self.names.items() if key.startswith("*.") and matches(name, key)), None)


def matches(name: str, domain: str) -> bool:
    """Return whether a name is one of those that a domain with its wildcard stands for."""
    return domain == "*" or name == domain or (domain.startswith("*.") and name.endswith(domain[1:]))


def answer(query: bytes, zone: Zone) -> bytes:
    """Return the answer to a query; empty where it is none that can be answered at all."""
    if len(query) < _HEADER.size:
        return b""
    identity, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & _RESPONSE:
        return b""
    if flags & _OPCODE:
        return _message(identity, flags, _NOT_IMPLEMENTED)
    parsed = _question(query) if questions == 1 else None
    if parsed is None:
        return _message(identity, flags, _FORMAT_ERROR)
    name, kind, section = parsed
    addresses = zone.addresses(name)
    if addresses is None:
        return _message(identity, flags, _NAME_ERROR, section)
    found = addresses if kind == (_A, _IN) else ()
    # 0xC00C points at the question's name, right after the header.
    records = [
        struct.pack("!HHHIH", 0xC00C, _A, _IN, _TTL_SECONDS, 4) + IPv4Address(address).packed for address in found
    ]
    return _message(identity, flags, _NO_ERROR, section, records)


def _question(query: bytes) -> tuple[str, tuple[int, int], bytes] | None:
    """Return the question's name in lower case, its type and class, and its bytes; None if it is malformed."""
    labels, position = [], _HEADER.size
    while position < len(query) and (length := query[position]):
        if length > 63 or position + 1 + length > len(query):
            return None
        labels.append(query[position + 1 : position + 1 + length])
        position += 1 + length
    end = position + 5
    if end > len(query) or not labels:
        return None
    kind = struct.unpack_from("!HH", query, position + 1)
    return b".".join(labels).decode("latin-1").lower(), (kind[0], kind[1]), query[_HEADER.size : end]


def _message(identity: int, flags: int, code: int, section: bytes = b"", records: Sequence[bytes] = ()) -> bytes:
    said = _RESPONSE | (flags & (_OPCODE | _RECURSION_DESIRED)) | _RECURSION_AVAILABLE | code
    return _HEADER.pack(identity, said, 1 if section else 0, len(records), 0, 0) + section + b"".join(records)
