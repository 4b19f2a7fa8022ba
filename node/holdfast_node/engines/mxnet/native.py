"""The guard below Python: it sees every message before MXNet does, in the process itself, with nothing compiled.

Only command 0 reaches Python; the others, data, and ps-lite's own control messages are followed in C++. Their one
way in is `ps::ZMQVan::RecvMsg`, a virtual function: its slot in the class's table is pointed at a Python function
that calls the original and looks at what it returns. Slots of libmxnet.so's global offset table lead a few of
ZeroMQ's functions the same way: each runs once per connection. All of this depends on one build, which is pinned.
"""

import ctypes
import hashlib
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from holdfast_node.engines.errors import EngineError, RefusedError
from holdfast_node.engines.mxnet import messages, repairs
from holdfast_node.engines.mxnet.messages import Message
from holdfast_node.engines.mxnet.peers import Peers

#: Where the pinned builds keep the addresses of functions, from their load address (`readelf -rW libmxnet.so`).
_SLOTS = {
    "b4e7f881e385e342fd6b8316b34fde03ccaaf74d649999de2333ee5b4d8f2ba0": {  # mxnet 1.9.1, manylinux2014 x86-64, CPU
        "_ZN2ps6ZMQVan7RecvMsgEPNS_7MessageE": 0x9463540,  # in the table of ps::ZMQVan
        "_ZN2ps3Van9ReceivingEv": 0x9475530,
        "_ZN2ps3Van21ProcessAddNodeCommandEPNS_7MessageEPNS_4MetaES4_": 0x9486F90,
        "_ZN3zmq11mechanism_t13peer_identityEPNS_5msg_tE": 0x94A5328,
        "zmq_bind": 0x948E220,
        "zmq_connect": 0x94B7150,
        "zmq_msg_recv": 0x949A438,
    },
    "0698ea1e5a9c871c174b1106ce8415c92acc75b651ebf0fe1853948e3984aaed": {  # mxnet-cu112 1.9.1, the same with CUDA
        "_ZN2ps6ZMQVan7RecvMsgEPNS_7MessageE": 0x32A1CE80,
        "_ZN2ps3Van9ReceivingEv": 0x32A61AC0,
        "_ZN2ps3Van21ProcessAddNodeCommandEPNS_7MessageEPNS_4MetaES4_": 0x32A7D530,
        "_ZN3zmq11mechanism_t13peer_identityEPNS_5msg_tE": 0x32B21198,
        "zmq_bind": 0x32AFBBC8,
        "zmq_connect": 0x32AE45A0,
        "zmq_msg_recv": 0x32AAA770,
    },
}
_RECEIVE, _LOOP, _ADD_NODE, _PEER, _BIND, _CONNECT, _FRAME = next(iter(_SLOTS.values()))
#: `mechanism_t::identity` and `null_mechanism_t::peer_address`, strings, as the latter's constructor places them.
_IDENTITY_AT, _ADDRESS_AT = 0x350, 0x370
#: zmq.h: frames above this size end their connection. Lengths in ps-lite are C ints. Without a limit, libzmq 4.2.2
#: writes beyond a buffer for a frame that says 2^64-1 bytes (CVE-2019-6250).
_ZMQ_MAXMSGSIZE = 22
#: zmq.h: libzmq 4.2.2 ends connections of the protocols before ZMTP 3.0 (which give an identity without a handshake)
#: on a socket with a domain for authentication (`stream_engine_t::handshake`). Nobody answers there: nothing is asked.
_ZMQ_ZAP_DOMAIN = 55
MAX_FRAME_BYTES = (1 << 31) - 1
_PAGE = os.sysconf("SC_PAGESIZE")
_READ, _WRITE = 1, 2  # PROT_READ, PROT_WRITE in sys/mman.h
_POINTER = ctypes.sizeof(ctypes.c_void_p)

#: Time and line with which dmlc's errors begin.
_SOURCE = re.compile(r"^\[[0-9:]{8}\] \S+: ")

#: Raises RefusedError, or returns whether every later message with the same fingerprint may pass too.
Check = Callable[[Message], bool]
#: Called with the reason, the sender's ps-lite id and facts for the log; it ends the process.
Refuse = Callable[..., NoReturn]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What looks at a process's traffic, what ends it, and what is done before its first message.

    With `origins`, a message knows the address that it came from. That costs a call per frame: for the scheduler, which
    nodes tell who they are before they have an identity.
    """

    peers: Peers
    refuse: Refuse
    start: Callable[[], None] | None = None
    message: Check | None = None
    add_node: Check | None = None
    max_frame_bytes: int = MAX_FRAME_BYTES
    origins: bool = False


#: Fingerprints that are kept: 16 workers' pushes and pulls of 1,500 keys, in some 20 MB.
_MAX_PASSED = 50_000
_PAUSE_SECONDS = 0.005
#: What native code calls must never be collected.
_kept: list[Any] = []


def require_known(path: Path) -> dict[str, int]:
    """Return the slots of this build of libmxnet.so.

    Raises:
        EngineError: it is another build: nothing is known of its memory, so nothing could be guarded.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in _SLOTS:
        raise EngineError(
            f"libmxnet.so must have SHA-256 {' or '.join(_SLOTS)}, got {digest}; the guard of the servers knows the "
            "memory of no other build: install what node/requirements.txt or requirements-gpu.txt locks"
        )
    return _SLOTS[digest]


class Interposer:
    """The hooks of one process: they stay for as long as it lives."""

    def __init__(self, library: Any, path: Path, hooks: Hooks) -> None:
        """Hook into `library`, loaded by ctypes from `path`; do it before MXNet's first connection.

        Raises:
            EngineError: another build, or its slots do not hold what they should.
        """
        self._hooks, self._library = hooks, library
        self._slots = require_known(path)
        self._receiver, self._receiving, self._origin = 0, 0, ""
        self._line = repairs.Line()
        #: Whether messages are received; else they wait where they came in (`intake.py`).
        self.taking = True
        #: What may pass unseen, with the bytes that it has on the wire beyond its size.
        self._passed: dict[messages.Fingerprint, int] = {}
        #: Bytes on the wire of the messages that were judged, by sender (`backlog.py`).
        self.judged: dict[int, int] = defaultdict(int)
        self._base = _mapping(lambda start, _, name: name == str(path))[0]
        self._bind = self._replace(_BIND, self._on_bind, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
        self._connect = self._replace(_CONNECT, self._on_connect, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
        self._introduced = self._replace(_PEER, self._on_peer, None, ctypes.c_void_p, ctypes.c_void_p)
        if hooks.origins:
            kinds = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
            self._frame = self._replace(_FRAME, self._on_frame, *kinds)
            self._property = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_char_p)(
                _address(library, "zmq_msg_gets")
            )
        if hooks.message is not None:
            self._receive = self._replace(_RECEIVE, self._on_message, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            self._loop = self._replace(_LOOP, self._on_loop, None, ctypes.c_void_p)
            self._end_loudly()
        if hooks.add_node is not None:
            pointers = (ctypes.c_void_p,) * 4
            self._add_node = self._replace(_ADD_NODE, self._on_add_node, None, *pointers)

    def _replace(self, symbol: str, function: Callable[..., Any], result: Any, *arguments: Any) -> Any:
        """Point a slot at `function`; return the original."""
        # Who asks for a frame reads errno when there is none.
        kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=symbol == _FRAME)
        original = _address(self._library, symbol)
        slot = self._base + self._slots[symbol]
        held = ctypes.c_void_p.from_address(slot)
        if held.value != original and not self._is_unbound(held.value):
            raise EngineError(f"libmxnet.so holds another function than {symbol} where the guard would be")
        callback = kind(function)
        _kept.append(callback)
        _write(slot, ctypes.cast(callback, ctypes.c_void_p).value or 0)
        return kind(original)

    def _is_unbound(self, value: int | None) -> bool:
        """Whether this is an address within the library: an unbound slot leads to its linkage table."""
        return value is not None and self._base <= value < self._base + min(self._slots.values())

    def _on_bind(self, receiver: int, endpoint: bytes) -> int:
        domain = b"holdfast"
        self._set(receiver, _ZMQ_MAXMSGSIZE, ctypes.c_int64(self._hooks.max_frame_bytes))
        self._set(receiver, _ZMQ_ZAP_DOMAIN, ctypes.create_string_buffer(domain, len(domain)))
        return int(self._bind(receiver, endpoint))

    def _set(self, receiver: int, option: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        if self._library.zmq_setsockopt(ctypes.c_void_p(receiver), option, ctypes.byref(value), size):
            self._hooks.refuse(f"the guard failed: ZeroMQ does not take its option {option}", messages.ANONYMOUS)

    def _on_connect(self, sender: int, endpoint: bytes) -> int:
        """Connect from this node's overlay address, as its peers' tunnels do in their nodes (zmq_tcp(7))."""
        kind, _, rest = endpoint.partition(b"://")
        return int(self._connect(sender, b"%s://%s:0;%s" % (kind, self._hooks.peers.own.encode(), rest)))

    def _on_peer(self, mechanism: int, message: int) -> None:
        """Judge a connection that has introduced itself, in ZeroMQ's own thread, before any message of it is read."""
        self._introduced(mechanism, message)
        peers, sender = self._hooks.peers, messages.ANONYMOUS
        try:
            identity, address = (messages.text(_pointer(mechanism + at)) for at in (_IDENTITY_AT, _ADDRESS_AT))
            sender = peers.at(address.decode("ascii", "replace"))
            peers.check(identity, address.decode("ascii", "replace"))
        except RefusedError as error:
            self._hooks.refuse(str(error), sender)
        except BaseException as error:  # ctypes would drop it
            self._hooks.refuse(f"the guard failed: {type(error).__name__}: {error}", sender)

    def _on_frame(self, frame: int, receiver: int, flags: int) -> int:
        size = int(self._frame(frame, receiver, flags))
        if size >= 0:
            self._origin = (self._property(frame, b"Peer-Address") or b"").decode("ascii", "replace")
        return size

    def _on_loop(self, van: int) -> None:
        """Be a Python function around the receiver.

        It is a native thread: entering Python anew for every message would set up a thread's state each time, which
        costs more than all checks.
        """
        self._receiver = threading.get_ident()
        try:
            if self._hooks.start is not None:
                self._hooks.start()
        except BaseException as error:  # ctypes would drop it
            self._hooks.refuse(f"the guard failed: {type(error).__name__}: {error}", messages.ANONYMOUS)
        self._loop(van)

    def _on_message(self, van: int, address: int) -> int:
        while not self.taking:
            time.sleep(_PAUSE_SECONDS)
        self._receiving = address
        size: int = self._receive(van, address)
        self._receiving = 0
        # The sum of the frames is a C int, so from 2 GiB on it is negative; at -1 ps-lite aborts.
        if size != -1 and self._hooks.message is not None:
            self._look(address, self._hooks.message, size)
            self._line.join(address)
        return size

    def _on_add_node(self, van: int, address: int, nodes: int, recovered: int) -> None:
        if self._hooks.add_node is not None:
            self._look(address, self._hooks.add_node, 0)
        self._add_node(van, address, nodes, recovered)

    def _look(self, address: int, check: Check, size: int) -> None:
        fingerprint = messages.fingerprint(address)
        if fingerprint is not None and (framing := self._passed.get(fingerprint)) is not None:
            self.judged[fingerprint[1]] += (size & messages.UNSIGNED) + framing
            return
        sender, facts = messages.ANONYMOUS, {}
        try:
            sender = self._sender_of(address)
            message = messages.read_message(address)
            message.origin = self._origin
            facts = {"head": message.head, "control": message.control, "size": len(message.body)}
            passes = check(message)
            framing = message.framing(size)
            self.judged[sender] += (size & messages.UNSIGNED) + framing
            if passes and fingerprint is not None and len(self._passed) < _MAX_PASSED:
                self._passed[fingerprint] = framing
        except (RefusedError, messages.MalformedError) as error:
            self._hooks.refuse(str(error), sender, **facts)
        except BaseException as error:  # ctypes would drop it, and the message would be followed
            self._hooks.refuse(f"the guard failed: {type(error).__name__}: {error}", sender)

    def _sender_of(self, address: int) -> int:
        """Return the sender of a message; one without an identity yet is known by where it comes from."""
        sender = messages.sender_of(address)
        return self._hooks.peers.at(self._origin) if sender == messages.ANONYMOUS else sender

    def _end_loudly(self) -> None:
        """Say who sent what ps-lite cannot even read: it throws an error that nobody catches."""
        runtime = ctypes.CDLL("libstdc++.so.6")
        handler = ctypes.CFUNCTYPE(None)(self._on_terminate)
        _kept.append(handler)
        runtime._ZSt13set_terminatePFvvE(handler)

    def _on_terminate(self) -> None:
        reason = _SOURCE.sub("", _what().partition("Stack trace:")[0].strip()) or "an error of unknown kind"
        if not self._receiving or threading.get_ident() != self._receiver:
            os.write(2, f"\nMXNetError: {' '.join(reason.split())[:300]}\n".encode())
            os.abort()  # as without the guard: the agent takes it for a crash, which another start may mend
        self._hooks.refuse(f"a message was not ps-lite's: {reason}", self._sender_of(self._receiving))


def _address(library: Any, symbol: str) -> int:
    return ctypes.cast(library[symbol], ctypes.c_void_p).value or 0


def _pointer(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _mapping(wanted: Callable[[int, int, str], bool]) -> tuple[int, str]:
    """Return start and rights of this process's first mapping that is wanted, by its start, end and file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *rest = line.split(maxsplit=5)
        start, end = (int(edge, 16) for edge in span.split("-"))
        if wanted(start, end, rest[3] if len(rest) > 3 else ""):
            return start, rights
    raise EngineError("libmxnet.so must be mapped from its file, which /proc/self/maps does not show")


def _write(slot: int, value: int) -> None:
    """Write a pointer into a table that the loader may have made read-only (RELRO)."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_void_p(slot & -_PAGE)
    protected = "w" not in _mapping(lambda start, end, _: start <= slot < end)[1]
    if protected and libc.mprotect(page, ctypes.c_size_t(_PAGE), _READ | _WRITE):
        raise EngineError(f"cannot guard libmxnet.so: mprotect: {os.strerror(ctypes.get_errno())}")
    ctypes.c_void_p.from_address(slot).value = value
    if protected and libc.mprotect(page, ctypes.c_size_t(_PAGE), _READ):
        raise EngineError(f"cannot guard libmxnet.so: mprotect: {os.strerror(ctypes.get_errno())}")


def _what() -> str:
    """Return the text of the C++ error that is ending this process: `std::exception::what`, where it is one."""
    runtime = ctypes.CDLL("libstdc++.so.6")
    runtime.__cxa_current_exception_type.restype = ctypes.c_void_p
    kind = runtime.__cxa_current_exception_type()
    if not kind:
        return ""
    name = ctypes.c_char_p.from_address(kind + _POINTER).value or b""
    if name != b"N4dmlc5ErrorE" and not name.startswith(b"St"):
        return name.decode("ascii", "replace")
    thrown = ctypes.c_void_p()
    runtime._ZSt17current_exceptionv(ctypes.byref(thrown))  # std::exception_ptr is one pointer, to the object
    table = ctypes.c_void_p.from_address(thrown.value or 0).value or 0
    # Itanium C++ ABI: two destructors stand before the first other virtual function.
    what = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(
        ctypes.c_void_p.from_address(table + 2 * _POINTER).value or 0
    )
    return (what(thrown.value) or b"").decode("utf-8", "replace")
