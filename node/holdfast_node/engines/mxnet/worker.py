"""The launcher of a worker: it prepares MXNet, then runs the user's script, which knows nothing of it.

Run as `python -P -m holdfast_node.engines.mxnet.worker SCRIPT ARGUMENTS…`.
"""

import gc
import importlib
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.roles import Role
from holdfast_node.contract.statuses import EXIT_PORT
from holdfast_node.engines.errors import EngineError, PortError
from holdfast_node.engines.mxnet import compatibility, events, ports, randomness, saving, shipped, updates
from holdfast_node.engines.mxnet.guard import Guard


def prepare() -> None:
    """Check the pinned port, patch MXNet for declarative updates and atomic saves, and apply the job's seed.

    Raises:
        PortError: the pinned port is taken.
    """
    directory = Path(os.environ["CHECKPOINT_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    address = ports.own_address()
    ports.require_free(address)
    mx = importlib.import_module("mxnet")
    store_module = importlib.import_module("mxnet.kvstore.kvstore")

    def joined(store: Any) -> None:
        ports.require_listener(address, ports.listeners())
        events.emit("joined", rank=store.rank, workers=store.num_workers)

    library = importlib.import_module("mxnet.base")._LIB
    Guard(library, Role.WORKER)
    updates.install(store_module.KVStore, mx, joined, lambda: events.emit("first_step", time=time.time()))
    numpy = importlib.import_module("numpy")
    compatibility.install(library, store_module.KVStore, mx.gluon.Trainer, mx.profiler, numpy)
    saving.install(library, directory)
    if seed := os.environ.get("HOLDFAST_SEED"):  # a script that sets its own seeds does so after this
        randomness.apply(seed, mx)


def run(script: Path, arguments: list[str]) -> None:
    """Run the script as `python SCRIPT ARGUMENTS…` would, to its end and MXNet's.

    Raises:
        EngineError: there is no such script.
    """
    if not script.is_file():
        raise EngineError(f"entry must be a file of the job's code, got {script.name}, which is not there")
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    if (root := os.environ.get(shipped.CODE)) and Path(root) != script.parent:
        sys.path.insert(1, root)  # where the job's own optimizers are
    runpy.run_path(str(script), run_name="__main__")
    # Errors of operations that nobody has waited for belong to the script too.
    importlib.import_module("mxnet").nd.waitall()


def main(arguments: list[str]) -> NoReturn:
    """Run the launcher and end the process with 0, 1 (the script failed) or the script's own status."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a service manager may have had it ignored
    if not arguments:
        print("usage: worker SCRIPT [ARGUMENTS…]", file=sys.stderr)
        sys.exit(2)
    try:
        prepare()
        run(Path(arguments[0]), arguments[1:])
    except SystemExit as end:
        if end.code not in (None, 0):
            _leave(_status(end.code))
    except PortError as error:
        print(f"PortError: {error}", file=sys.stderr)
        _leave(EXIT_PORT)
    except BaseException as error:
        _report(error)
        _leave(1)
    events.emit("done")
    gc.collect()  # stores held by cycles leave the job here, not in the middle of the interpreter's end
    sys.exit(0)


def _status(code: object) -> int:
    if isinstance(code, int):
        return code & 0xFF or 1
    print(code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback, from the script's own first line on, with `ErrorType: message` as the last line."""
    launcher = {__file__, runpy.__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in launcher and not frame.filename.startswith("<frozen runpy")
    ]
    sys.stdout.flush()
    if frames:
        print("Traceback (most recent call last):", file=sys.stderr)
        print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
    if isinstance(error, HoldfastError):  # without its module's path, which means nothing to the script's author
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    else:
        print("".join(traceback.format_exception_only(error)), end="", file=sys.stderr)


def _leave(status: int) -> NoReturn:
    """End at once: MXNet's teardown would wait at a barrier for workers that will never come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
