"""Byte relays: an address inside a host stands for a VPC endpoint and reaches the embedded AWS outside it.

TLS runs through unopened: the host checks the embedded AWS's certificate itself.
"""

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import Future

_CONNECT_SECONDS = 5
_CHUNK = 1 << 16


class Relays:
    """One event loop in one thread that carries every host's connections to one address."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._thread.start()

    def add(self, listener: socket.socket) -> asyncio.Server:
        """Carry what connects to `listener` to the target, both ways, until the server is closed."""
        listener.setblocking(False)
        return asyncio.run_coroutine_threadsafe(asyncio.start_server(self._carry, sock=listener), self._loop).result(
            _CONNECT_SECONDS
        )

    def remove(self, server: asyncio.Server) -> None:
        """Stop accepting; open connections end with their host."""
        self._loop.call_soon_threadsafe(server.close)

    def close(self) -> None:
        """End every connection and the thread."""
        stopped: Future[None] = asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
        with contextlib.suppress(TimeoutError):
            stopped.result(_CONNECT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONNECT_SECONDS)

    async def _cancel(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                out_reader, out_writer = await asyncio.open_connection(*self._target)
        except OSError:  # includes TimeoutError
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, out_writer), _pump(out_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            out_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
