"""Byte relays: an address on the switch stands for a VPC endpoint and reaches the embedded AWS outside it.

TLS runs through unopened: the host checks the embedded AWS's certificate itself.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import cast

#: What answers one connection.
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_CONNECT_SECONDS = 5
_CHUNK = 1 << 16


class Relays:
    """One event loop in one thread that carries every host's connections to one address, and answers small services."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._thread.start()

    def add(self, listener: socket.socket, *, source: str) -> asyncio.Server:
        """Carry what connects to `listener` to the target, from the address `source`, until the server is closed."""
        return self._start(listener, lambda reader, writer: self._carry(reader, writer, source))

    def serve(self, listener: socket.socket, handler: Handler) -> asyncio.Server:
        """Have `handler` answer what connects to `listener`; a connection that takes too long is closed."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError):  # includes TimeoutError
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await handler(reader, writer)
            writer.close()

        return self._start(listener, answer)

    def receive(self, bound: socket.socket, answer: Callable[[bytes], bytes]) -> asyncio.DatagramTransport:
        """Send back what `answer` returns for each datagram; nothing where it returns nothing."""
        bound.setblocking(False)

        async def start() -> asyncio.DatagramTransport:
            transport, _ = await self._loop.create_datagram_endpoint(lambda: _Answering(answer), sock=bound)
            return transport

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(_CONNECT_SECONDS)

    def _start(self, listener: socket.socket, handler: Handler) -> asyncio.Server:
        listener.setblocking(False)
        return asyncio.run_coroutine_threadsafe(asyncio.start_server(handler, sock=listener), self._loop).result(
            _CONNECT_SECONDS
        )

    def abort(self, transport: asyncio.DatagramTransport) -> None:
        """Stop answering datagrams."""
        self._loop.call_soon_threadsafe(transport.abort)

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

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                out_reader, out_writer = await asyncio.open_connection(*self._target, local_addr=(source, 0))
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


class _Answering(asyncio.DatagramProtocol):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if said := self._answer(data):
            self._transport.sendto(said, address)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
