"""Network namespaces by thread: a namespace belongs to a thread, so one thread can work in another's.

`setns(2)` and `unshare(2)` change the calling thread only, and a child process starts in the namespace of the
thread that forks it. A socket stays in the namespace where it was made, whoever uses it later. So the hypervisor
itself never leaves the machine's own network, and when it dies, however it dies, every namespace goes with it.
"""

import ctypes
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

# <linux/sched.h>
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """A new network namespace that lives as long as this process (or until `close`).

    With `also` (`CLONE_…`) its thread gets further namespaces: with a process namespace, the first process that is
    started inside is its init, and no thread can be.
    """

    def __init__(self, *, also: int = 0) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="network-namespace", daemon=True)
        self._thread.start()
        self.run(lambda: _call("unshare", CLONE_NEWNET | also))

    @property
    def thread_id(self) -> int:
        """The id that stands for this namespace where a process id is wanted: its thread's."""
        return self._thread.native_id or 0

    def run(self, function: Callable[[], T]) -> T:
        """Return what `function` returns when it is called inside the namespace; raise what it raises."""
        future: Future[T] = Future()

        def task() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(task)
        return future.result()

    def close(self) -> None:
        """Let go of the namespace; the kernel removes it with its interfaces."""
        self._work.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (task := self._work.get()) is not None:
            task()


def run_in(pid: int, function: Callable[[], T]) -> T:
    """Return what `function` returns when it is called inside the network namespace of the process `pid`."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _call("setns", descriptor, CLONE_NEWNET)
            finally:
                os.close(descriptor)
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, name=f"in-namespace-of-{pid}", daemon=True)
    thread.start()
    thread.join()
    return future.result()


def listen(address: str, port: int) -> socket.socket:
    """Return a listening TCP socket, made in the caller's network namespace."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
    except OSError:
        listener.close()
        raise
    return listener


def bind_datagrams(address: str, port: int) -> socket.socket:
    """Return a bound UDP socket, made in the caller's network namespace."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        bound.bind((address, port))
    except OSError:
        bound.close()
        raise
    return bound


def write_setting(name: str, value: str) -> None:
    """Write a setting below `/proc/sys/net`, which shows the calling thread's network namespace."""
    (Path("/proc/sys/net") / name).write_text(value)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends, however that ends (prctl(2))."""
    parent = os.getppid()
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGTERM)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
