"""The launcher of a scheduler or server: MXNet's native server with a controller that executes nothing.

`import mxnet` starts MXNet's own server where `DMLC_ROLE` is not worker (kvstore_server.py, line 86), and that one
unpickles what it is sent. So MXNet is imported without the variable, which the native code reads later, lazily.
Run as `python -P -m holdfast_node.engines.mxnet.server scheduler|server`.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_PORT
from holdfast_node.engines.errors import EngineError, PortError
from holdfast_node.engines.mxnet import events, heartbeats, pickles, ports, randomness, shipped
from holdfast_node.engines.mxnet.controller import Controller
from holdfast_node.engines.mxnet.guard import Guard

_ROLES = (Role.SCHEDULER.value, Role.SERVER.value)
_LISTEN_SECONDS = 60.0
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def serve(role: str) -> None:
    """Run the scheduler or a server until the job's workers have ended.

    Raises:
        EngineError: not a role of this launcher, or `DMLC_ROLE` is set.
        PortError: the pinned port is taken.
    """
    if role not in _ROLES:
        raise EngineError(f"role must be one of {list(_ROLES)}, got {role[:80]!r}")
    if "DMLC_ROLE" in os.environ or "mxnet" in sys.modules:
        raise EngineError("MXNet must be imported without DMLC_ROLE, else it starts a server that unpickles; unset it")
    if role == Role.SERVER:
        Path(os.environ["CHECKPOINT_DIR"]).mkdir(parents=True, exist_ok=True)
    address = ports.own_address()
    ports.require_free(address)
    import mxnet as mx  # type: ignore[import-not-found]
    from mxnet.base import _LIB, check_call  # type: ignore[import-not-found]

    if seed := os.environ.get("HOLDFAST_SEED"):  # SGLD draws its noise on the servers
        randomness.apply(seed, mx)
    pickles.disable()
    os.environ["DMLC_ROLE"] = role
    guard = Guard(_LIB, Role(role))
    store = mx.kv.create("dist")
    guard.store = store.handle.value

    def watch() -> None:
        _check_listener(address)  # before it listens, ps-lite has no heartbeats to ask for
        heartbeats.watch(store, _LIB, Role(role))

    threading.Thread(target=watch, name="watch", daemon=True).start()
    controller = Controller(
        store, mx, report=guard.report, installed=guard.installed, end=guard.end, own=shipped.load(mx)
    )

    def follow(head: int, body: bytes | None, _: Any) -> None:
        controller(head, body)

    callback = _Callback(follow)
    check_call(_LIB.MXKVStoreRunServer(store.handle, callback, None))


def main(arguments: list[str]) -> int:
    """Run the launcher; a problem is one line on standard error, and the exit status says which kind."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a service manager may have had it ignored
    if len(arguments) != 1:
        print(f"usage: server {'|'.join(_ROLES)}", file=sys.stderr)
        return 2
    try:
        serve(arguments[0])
    except PortError as error:
        print(f"PortError: {error}", file=sys.stderr)
        return EXIT_PORT
    except HoldfastError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    events.emit("done")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # MXNet's teardown would enter a barrier that nobody else comes to


def _check_listener(address: ports.Address) -> None:
    """End the process if ps-lite listens elsewhere: no peer could reach it and the job would hang."""
    deadline = time.monotonic() + _LISTEN_SECONDS
    while time.monotonic() < deadline:
        if found := ports.listeners():
            try:
                ports.require_listener(address, found)
            except PortError as error:
                print(f"PortError: {error}", file=sys.stderr, flush=True)
                os._exit(EXIT_PORT)
            return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
