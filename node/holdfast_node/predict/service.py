"""The prediction endpoint: one port, mutual TLS 1.3, JSON, one request per connection, a limit on everything.

    GET  /v1/model    what is served: job, cluster, shape, labels, what leaves, and the limits
    POST /v1/predict  {"data": [row, …]} -> {"predictions": [value, …]}

Refusals are `{"error": message}` with their status; 429 carries Retry-After. A client learns nothing of a failure but
that there was one. It runs as the trainer's user: it has no credentials, no way off the node but answers, and what it
reads it cannot write. The model is verified again by this process, right before it is loaded.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from holdfast_node.contract.documents import NodeConfig, Predictions
from holdfast_node.contract.errors import HoldfastError
from holdfast_node.contract.layout import NodePaths
from holdfast_node.predict.errors import PredictorError, RequestRefused
from holdfast_node.predict.limits import RateLimiter
from holdfast_node.predict.places import Places
from holdfast_node.predict.requests import MAX_HEAD_BYTES, Head, parse_head, parse_rows
from holdfast_node.predict.tls import Denied, ServerTls, client_name

_LOG = logging.getLogger("holdfast.predict")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one connection, and all of them, may take. Seconds are for the whole of a phase, not for each byte."""

    connections: int = 64
    connections_per_address: int = 8
    handshake_seconds: float = 5.0
    request_seconds: float = 10.0
    answer_seconds: float = 30.0
    write_seconds: float = 10.0
    linger_seconds: float = 1.0
    body_bytes: int = 1 << 20
    waiting: int = 16


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the endpoint answers with: `predict` gets the body's rows; `about` is public to every client."""

    shape: tuple[int, ...]
    about: dict[str, Any]
    predict: Callable[[Any], list[Any]]


class PredictionService:
    """Serves one predictor until it is cancelled. One thread computes; the loop does nothing that takes long."""

    def __init__(
        self,
        served: Served,
        tls: ServerTls,
        limiter: RateLimiter,
        *,
        batch_rows: int,
        denied: Container[str] = frozenset(),
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._served, self._tls, self._limiter = served, tls, limiter
        self._batch_rows, self._denied = batch_rows, denied
        self._bounds, self._clock = bounds or Bounds(), clock
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._by_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        #: Connections and requests by what became of them, for the log.
        self.counts: Counter[str] = Counter()

    async def serve(self, listener: socket.socket) -> None:
        """Accept on `listener`, which is bound and listens, until cancelled."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, (address, *_) = await loop.sock_accept(listener)
                except OSError as error:  # out of descriptors, or a connection that is gone already
                    _LOG.warning('{"event": "accept_failed", "cause": "%s"}', error.strerror)
                    await asyncio.sleep(0.1)
                    continue
                bounds = self._bounds
                if (
                    len(self._tasks) >= bounds.connections
                    or self._by_address[address] >= bounds.connections_per_address
                ):
                    self.counts["refused_connections"] += 1
                    connection.close()
                    continue
                self._by_address[address] += 1
                task = loop.create_task(self._connection(connection, address))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _connection(self, connection: socket.socket, address: str) -> None:
        try:
            await self._talk(connection, address)
        except (ssl.SSLError, ConnectionError, TimeoutError, OSError) as error:
            self.counts["refused_handshakes"] += 1
            self._log({"event": "connection_refused", "address": address, "cause": _cause(error)})
        finally:
            connection.close()
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    async def _talk(self, connection: socket.socket, address: str) -> None:
        loop, bounds = asyncio.get_running_loop(), self._bounds
        reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=self._tls.context(),
            ssl_handshake_timeout=bounds.handshake_seconds,
            ssl_shutdown_timeout=1.0,
        )
        try:
            await self._exchange(transport, asyncio.StreamWriter(transport, protocol, reader, loop), reader, address)
        finally:
            transport.abort()

    async def _exchange(
        self, transport: asyncio.Transport, writer: asyncio.StreamWriter, reader: asyncio.StreamReader, address: str
    ) -> None:
        """Read one request, answer it, and close."""
        client = client_name(transport.get_extra_info("peercert") or {})
        started = self._clock()
        line: dict[str, Any] = {"event": "request", "client": client, "address": address}
        headers: dict[str, str] = {}
        try:
            status, answer = 200, await self._answer(reader, client, line)
        except RequestRefused as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
            if refusal.retry_seconds is not None:
                headers["Retry-After"] = str(refusal.retry_seconds)
        except (ConnectionError, asyncio.IncompleteReadError):
            status, answer = 400, {"error": "the request ended early"}
        except Exception as error:  # whatever it is, the client learns no more than that
            self._log({"event": "failed", "cause": f"{type(error).__name__}: {error}"[:500]})
            status, answer = 500, {"error": "the prediction failed; the node's log has the cause"}
        self.counts[str(status)] += 1
        self._log({**line, "status": status, "ms": round((self._clock() - started) * 1000)})
        async with asyncio.timeout(self._bounds.write_seconds):
            writer.write(_response(status, answer, headers))
            await writer.drain()
            if status != HTTPStatus.OK:
                await self._linger(reader)
            writer.close()
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, client: str, line: dict[str, Any]) -> dict[str, Any]:
        bounds = self._bounds
        if client in self._denied:
            raise RequestRefused(403, "this client was revoked")
        try:
            async with asyncio.timeout(bounds.request_seconds):
                head = await self._head(reader)
                line["target"] = f"{head.method} {head.target}"[:100]
                self._route(head)
                body = await self._body(reader, head.length)
        except TimeoutError:
            self._limiter.admit(client, 1, self._clock())
            raise RequestRefused(408, f"a request must arrive within {bounds.request_seconds:g} s") from None
        except RequestRefused:
            self._limiter.admit(client, 1, self._clock())
            raise
        self._charge(client, 1)
        if head.method == "GET":
            return self._served.about
        rows = await self._compute(lambda: parse_rows(body, shape=self._served.shape, max_rows=self._batch_rows))
        line["rows"] = len(rows)
        if len(rows) > 1:
            self._charge(client, len(rows) - 1)
        return {"predictions": await self._compute(lambda: self._served.predict(rows))}

    async def _linger(self, reader: asyncio.StreamReader) -> None:
        """Read on for a moment: bytes that nobody read would reset the connection, the answer with it."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._bounds.linger_seconds):
                while await reader.read(1 << 16):
                    pass

    async def _head(self, reader: asyncio.StreamReader) -> Head:
        try:
            data = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            raise RequestRefused(431, f"a request's head must be at most {MAX_HEAD_BYTES} bytes") from None
        return parse_head(data, max_body_bytes=self._bounds.body_bytes)

    @staticmethod
    async def _body(reader: asyncio.StreamReader, length: int) -> bytes:
        return await reader.readexactly(length) if length else b""

    @staticmethod
    def _route(head: Head) -> None:
        allowed = {"/v1/model": "GET", "/v1/predict": "POST"}.get(head.target)
        if allowed is None:
            raise RequestRefused(404, "there are /v1/model and /v1/predict")
        if head.method != allowed:
            raise RequestRefused(405, f"{head.target} takes {allowed}, got {head.method}")

    def _charge(self, client: str, rows: int) -> None:
        wait = self._limiter.admit(client, rows, self._clock())
        if wait:
            self.counts["limited"] += 1
            seconds = math.ceil(wait)
            raise RequestRefused(429, f"too many rows for now; come again in {seconds} s", retry_seconds=seconds)

    async def _compute(self, work: Callable[[], Any]) -> Any:
        if self._waiting >= self._bounds.waiting:
            raise RequestRefused(503, "busy; come again", retry_seconds=1)
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._worker, work)
        future.add_done_callback(lambda _: self._done())  # a thread goes on after its request has been given up
        try:
            async with asyncio.timeout(self._bounds.answer_seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise RequestRefused(503, "the prediction took too long") from None

    def _done(self) -> None:
        self._waiting -= 1

    @staticmethod
    def _log(line: dict[str, Any]) -> None:
        _LOG.info("%s", json.dumps(line))


def _response(status: int, answer: dict[str, Any], headers: dict[str, str]) -> bytes:
    body = json.dumps(answer, separators=(",", ":")).encode() + b"\n"
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body


def _cause(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error.args}"[:200]
    return f"{type(error).__name__}: {error}"[:200]


def load(places: Places, predictions: Predictions, cluster: str) -> Served:
    """Verify the model of the configured job, and load what was verified.

    Raises:
        ModelRefused: it is not exactly what was signed, for this job and cluster.
        PredictorError: it cannot be served.
    """
    # Here and not above: the service itself needs neither MXNet nor a model.
    from holdfast_node.engines.mxnet.scoring import load_scorer
    from holdfast_node.models import load_verified
    from holdfast_node.predict.disclosure import Disclosure
    from holdfast_node.predict.predictor import Predictor, described

    model = load_verified(
        places.model, places.signature, places.key.read_bytes(), job_id=predictions.job_id, cluster=cluster
    )
    served = described(model)
    predictor = Predictor(served, load_scorer(model, served, predictions.batch_rows), Disclosure.of(predictions))
    about = {
        "job_id": model.record.job_id,
        "cluster": model.record.cluster,
        "shape": list(predictor.shape),
        "labels": list(predictor.labels),
        "output": predictions.output.value,
        "digits": predictions.digits,
        "top_k": predictions.top_k,
        "batch_rows": predictions.batch_rows,
        "rows_per_minute": predictions.rows_per_minute,
        "rows_per_day": predictions.rows_per_day,
    }
    return Served(shape=predictor.shape, about=about, predict=predictor.predict)


def bind(address: str, port: int) -> socket.socket:
    """Return a socket that listens on one address.

    Raises:
        PredictorError: the address is not one, or the port is taken.
    """
    if address in ("", "0.0.0.0", "::"):  # noqa: S104 - refused
        raise PredictorError(f"the endpoint must listen on one address of the node, got {address!r}")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PredictorError(f"the endpoint cannot listen on {address}:{port}: {error.strerror}") from None
    return listener


async def _run(service: PredictionService, listener: socket.socket) -> None:
    task = asyncio.ensure_future(service.serve(listener))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def main() -> int:
    """Serve the model that the agent placed below `--root` on `--listen`, an address of this node."""
    parser = argparse.ArgumentParser(description="Serve predictions of a verified model.")
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--listen", metavar="ADDRESS", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    paths = NodePaths(arguments.root)
    places = Places(paths.job)
    try:
        config = NodeConfig.parse(paths.config.read_bytes())
        predictions = config.predictions
        if predictions is None:
            raise PredictorError(f"this node is a {config.role} and no predictor")
        service = PredictionService(
            load(places, predictions, config.cluster),
            ServerTls(places.tls, places.client_ca if predictions.client_ca else places.tls / "ca.pem"),
            RateLimiter(rows_per_minute=predictions.rows_per_minute, rows_per_day=predictions.rows_per_day),
            batch_rows=predictions.batch_rows,
            denied=Denied(places.denied),
        )
        listener = bind(arguments.listen, predictions.port)
    except (HoldfastError, OSError) as error:
        print(f"predictor: {error}", file=sys.stderr)
        return 1
    with listener:
        _LOG.info('{"event": "serving", "port": %d, "job": "%s"}', predictions.port, predictions.job_id)
        asyncio.run(_run(service, listener))
    return 0


if __name__ == "__main__":
    sys.exit(main())
