"""The emulator's server: ministack with the extension, on a listener that its parent opened.

Run by `process.Emulator` inside the environment that holds ministack; it is no command of its own. ministack's
own entry point is not used, because it would also take port 443 and leave a file in /tmp.
"""

import asyncio
import ctypes
import os
import resource
import signal
import sys

from holdfast_local.emulator import extension
from holdfast_local.emulator.extension.seams import SeamError, seam

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    """Serve until SIGTERM, or until the parent is gone; return the exit status."""
    os.umask(0o077)
    _die_with_parent(int(os.environ.pop("HOLDFAST_PARENT")))
    listener = int(os.environ.pop("HOLDFAST_LISTENER"))
    os.set_inheritable(listener, False)
    # Functions inherit this environment: they must find only what their own archive carries.
    os.environ.pop("PYTHONPATH", None)
    try:
        application = extension.install()
    except SeamError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    _raise_descriptor_limit()
    signal.signal(signal.SIGTERM, _end)
    asyncio.run(_serve(application, listener))
    return 0


async def _serve(application: extension.Application, listener: int) -> None:
    asyncio_module = seam("hypercorn.asyncio", "serve")
    config = seam("hypercorn.config", "Config").Config()
    config.bind = [f"fd://{listener}"]
    config.certfile = os.environ["MINISTACK_SSL_CERT"]
    config.keyfile = os.environ["MINISTACK_SSL_KEY"]
    config.keep_alive_timeout = 75
    config.loglevel = "WARNING"
    # Without a trigger of its own, hypercorn would replace the handler of SIGTERM.
    await asyncio_module.serve(application, config, shutdown_trigger=asyncio.Event().wait)


def _end(_number: int, _frame: object) -> None:
    """End at once, with the functions' processes, which are in this process's group; nothing here is to be kept."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    # Threads of running executions would keep the interpreter alive.
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the thread that started this process ends (prctl(2), PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        # It ended before the line above.
        sys.exit(0)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
