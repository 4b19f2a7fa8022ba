"""The endpoint: who gets in, what a request may be, what an attacker's connection costs. Real TLS, on loopback."""

import datetime
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predict_support import HOST, Authority, Client, Endpoint, client_context, endpoint, read_all

from holdfast_node.contract.roles import Serving
from holdfast_node.predict.errors import PredictorError, RequestRefused
from holdfast_node.predict.requests import parse_head
from holdfast_node.predict.service import Bounds, Served, bind
from holdfast_node.predict.tls import Denied, client_name

SECRET = "the model's inside"


def answer(rows: Any) -> list[Any]:
    if rows[0, 0] == 13:
        raise RuntimeError(SECRET)
    return ["even" if value % 2 == 0 else "odd" for value in rows.sum(axis=1)]


SERVED = Served(shape=(2,), about={"job_id": "digits-1"}, predict=answer)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    bounds = Bounds(
        handshake_seconds=1.0, request_seconds=1.0, connections_per_address=16, body_bytes=4096, linger_seconds=0.1
    )
    with endpoint(tmp_path_factory.mktemp("endpoint"), SERVED, bounds=bounds) as found:
        yield found


# --- who gets in ---


def test_a_client_with_a_certificate_gets_predictions(running: Endpoint) -> None:
    status, value, headers = running.client().predict([[1, 1], [1, 2.0]])
    assert (status, value) == (200, {"predictions": ["even", "odd"]})
    assert (headers["Content-Type"], headers["Connection"]) == ("application/json", "close")
    assert "Server" not in headers


def test_a_client_learns_what_is_served(running: Endpoint) -> None:
    assert running.client().request("GET", "/v1/model")[:2] == (200, {"job_id": "digits-1"})


def refused(client: Client) -> bool:
    """Whether the server ends the connection without a word of HTTP; TLS 1.3 clients learn of it when they read."""
    try:
        return client.send(b"GET /v1/model HTTP/1.1\r\n\r\n") == b""
    except (ssl.SSLError, ConnectionError):
        return True


STRANGERS = {
    "no certificate": lambda r, d: client_context(None, r.directory / "tls/ca.pem"),
    "another authority's": lambda r, d: client_context(Authority().issue(d), r.directory / "tls/ca.pem"),
    "another authority's of the same name": lambda r, d: client_context(
        Authority("demo CA").issue(d), r.directory / "tls/ca.pem"
    ),
    "expired": lambda r, d: client_context(
        r.authority.issue(d, lifetime=datetime.timedelta(seconds=-5)), r.directory / "tls/ca.pem"
    ),
    "TLS 1.2": lambda r, d: client_context(
        r.authority.issue(d), r.directory / "tls/ca.pem", version=ssl.TLSVersion.TLSv1_2
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_gets_no_answer(case: str, running: Endpoint, tmp_path: Path) -> None:
    assert refused(Client(running.port, STRANGERS[case](running, tmp_path / "stranger")))
    assert not refused(running.client())


def test_plaintext_gets_no_answer(running: Endpoint) -> None:
    with socket.create_connection((HOST, running.port), timeout=10) as connection:
        connection.sendall(b"GET /v1/model HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTP" not in read_all(connection)


def test_a_client_knows_a_server_that_is_no_predictor(running: Endpoint) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        running.client(name="worker.demo.holdfast").request("GET", "/v1/model")


def test_a_renewed_certificate_is_shown_to_the_next_client(tmp_path: Path) -> None:
    with endpoint(tmp_path, SERVED) as running:
        client = running.client()
        with client.connect() as connection:
            before = connection.getpeercert(binary_form=True)
        running.authority.issue(tmp_path / "new", Serving.PREDICTOR, "i-00000000ff")
        (tmp_path / "new/key.pem").replace(tmp_path / "tls/key.pem")
        with client.connect() as connection:  # between the two files: the old pair is still shown
            assert connection.getpeercert(binary_form=True) == before
        (tmp_path / "new/cert.pem").replace(tmp_path / "tls/cert.pem")
        with client.connect() as connection:
            assert connection.getpeercert(binary_form=True) != before
        assert client.predict([[1, 1]])[0] == 200


def test_a_revoked_client_is_refused_and_another_is_not(tmp_path: Path) -> None:
    file = tmp_path / "denied.json"
    file.write_text(json.dumps(["i-0000000001"]))
    with endpoint(tmp_path, SERVED, denied=Denied(file)) as running:
        assert running.client(1).predict([[1, 1]])[:2] == (403, {"error": "this client was revoked"})
        assert running.client(2).predict([[1, 1]])[0] == 200
        os.utime(file, (time.time() - 120, time.time() - 120))
        assert running.client(2).predict([[1, 1]])[0] == 403, "nobody knows who is revoked"
        file.write_text("{}")
        assert running.client(2).predict([[1, 1]])[0] == 403
        file.unlink()
        assert running.client(2).predict([[1, 1]])[0] == 403


NAMES = {
    "URI before DNS": (
        {"subjectAltName": (("DNS", "worker.demo.holdfast"), ("URI", "spiffe://demo/worker/i-1"))},
        "URI:spiffe://demo/worker/i-1",
    ),
    "DNS": ({"subjectAltName": (("DNS", "app.example"),)}, "DNS:app.example"),
    "subject": ({"subject": ((("commonName", "app"),),)}, "subject:commonName=app"),
    "nothing": ({}, "subject:"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_client_is_counted_by_its_certificates_name(case: str) -> None:
    certificate, name = NAMES[case]
    assert client_name(certificate) == name


# --- what a request may be ---


def head(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode() + body


POST = ("POST /v1/predict HTTP/1.1", "Content-Type: application/json")
MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "not HTTP": (b"\x00\x01\x02\r\n\r\n", 400, "the request must begin with a line such as"),
    "not ASCII": (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "the request's head must be ASCII"),
    "HTTP/1.0": (head("GET /v1/model HTTP/1.0"), 505, "the protocol must be HTTP/1.1, got HTTP/1.0"),
    "another path": (head("GET /etc/passwd HTTP/1.1"), 404, "there are /v1/model and /v1/predict"),
    "another method": (head("GET /v1/predict HTTP/1.1"), 405, "/v1/predict takes POST, got GET"),
    "no length": (head(*POST), 411, "POST must have a Content-Length in decimal digits"),
    "a negative length": (head(*POST, "Content-Length: -1"), 411, "POST must have a Content-Length in decimal"),
    "two lengths": (
        head(*POST, "Content-Length: 2", "Content-Length: 4", body=b"{}"),
        400,
        "the header content-length must be given once",
    ),
    "chunks": (head(*POST, "Transfer-Encoding: chunked"), 501, "a body must have a Content-Length, got a Transfer-Enc"),
    "too long": (head(*POST, "Content-Length: 4097"), 413, "a body must be at most 4096 bytes, got 4097"),
    "far too long": (head(*POST, "Content-Length: 99999999999"), 411, "POST must have a Content-Length in decimal"),
    "a form": (
        head("POST /v1/predict HTTP/1.1", "Content-Type: text/plain", "Content-Length: 2", body=b"{}"),
        415,
        "Content-Type must be application/json",
    ),
    "expectations": (head(*POST, "Content-Length: 2", "Expect: 100-continue"), 417, "Expect is not supported"),
    "a folded header": (head("GET /v1/model HTTP/1.1", "A: b", " c"), 400, "a header must be a name, a colon and"),
    "a control character": (head("GET /v1/model HTTP/1.1", "A: b\x00"), 400, "a header must be a name, a colon and"),
    "many headers": (
        head("GET /v1/model HTTP/1.1", *(f"A{n}: b" for n in range(51))),
        431,
        "a request has at most 50 headers, got 51",
    ),
    "a long head": (head("GET /v1/model HTTP/1.1", *("A: " + "b" * 900 for _ in range(12))), 431, "a request's head "),
    "an early end": (head(*POST, "Content-Length: 20", body=b"{}"), 408, "a request must arrive within 1 s"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_by_name(case: str, running: Endpoint) -> None:
    data, status, message = MALFORMED[case]
    answer = running.client().send(data)
    first, _, rest = answer.partition(b"\r\n")
    assert first.split()[1] == str(status).encode()
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"].startswith(message)


def test_a_bad_header_of_many_spaces_is_refused_at_once() -> None:
    data = head("GET /v1/model HTTP/1.1", "A:" + " " * 2000 + "\x00")
    began = time.process_time()
    with pytest.raises(RequestRefused, match="a header must be a name"):
        parse_head(data, max_body_bytes=1)
    assert time.process_time() - began < 1


def test_spaces_around_a_header_s_value_do_not_count() -> None:
    data = head("POST /v1/predict HTTP/1.1", "Content-Type:\t application/json ", "Content-Length:2 \t")
    assert parse_head(data, max_body_bytes=2).length == 2


ROWS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{", 'the body must be JSON such as {"data": [[0.5, 1.0]]}, with finite numbers'),
    "NaN": (b'{"data": [[NaN, 1]]}', "the body must be JSON such as"),
    "infinity": (b'{"data": [[-Infinity, 1]]}', "the body must be JSON such as"),
    "deep": (b"[" * 4000, "the body must be JSON such as"),
    "another key": (b'{"data": [[1, 1]], "logits": true}', 'the body must be an object with the one key "data"'),
    "a list": (b"[[1, 1]]", 'the body must be an object with the one key "data", a list of rows'),
    "no row": (b'{"data": []}', "a request must have between 1 and 4 rows, got 0"),
    "too many rows": (json.dumps({"data": [[1, 1]] * 5}).encode(), "a request must have between 1 and 4 rows, got 5"),
    "a short row": (b'{"data": [[1, 1], [1]]}', "row 1 must be a list of 2, got a list of 1"),
    "a flat row": (b'{"data": [1, 1]}', "row 0 must be a list of 2, got int"),
    "a deep row": (b'{"data": [[[1], 1]]}', "row 0 must hold numbers only, got list"),
    "text": (b'{"data": [["1", 1]]}', "row 0 must hold numbers only, got str"),
    "a boolean": (b'{"data": [[true, 1]]}', "row 0 must hold numbers only, got bool"),
    "null": (b'{"data": [[null, 1]]}', "row 0 must hold numbers only, got NoneType"),
    "too large for float32": (b'{"data": [[1e39, 1]]}', "every value must be finite as a 32-bit float"),
    "too large for any float": (b'{"data": [[1' + b"0" * 400 + b", 1]]}", "every value must be finite as a 32-bit"),
    "a number without end": (b'{"data": [[' + b"9" * 3900 + b", 1]]}", "every value must be finite as a 32-bit"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_do_not_fit_are_refused_by_name(case: str, running: Endpoint) -> None:
    body, message = ROWS[case]
    status, value, _ = running.client().request("POST", "/v1/predict", body, {"Content-Type": "application/json"})
    assert (status, value["error"][: len(message)]) == (400, message)


def test_a_failure_tells_the_client_nothing(running: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "holdfast.predict"):
        answer = running.client().predict([[13, 1]])
    assert answer[:2] == (500, {"error": "the prediction failed; the node's log has the cause"})
    assert SECRET in caplog.text


def test_a_request_is_logged_without_its_content(running: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "holdfast.predict"):
        running.client().predict([[1234567, 1], [1, 1]])
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    line = json.loads(caplog.records[-1].message)
    assert (line["client"], line["rows"], line["status"]) == ("URI:spiffe://demo/worker/i-0000000001", 2, 200)
    assert "1234567" not in caplog.text


# --- what an attacker's connection costs ---


def test_a_handshake_that_never_comes_is_cut_off(running: Endpoint) -> None:
    with socket.create_connection((HOST, running.port), timeout=10) as connection:
        started = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - started < 8


def test_a_request_that_drips_is_cut_off_although_every_byte_is_in_time(running: Endpoint) -> None:
    with running.client().connect() as connection:
        stop = threading.Event()

        def drip() -> None:
            for byte in b"GET /v1/model HTTP/1.1\r\n" + b"A: b\r\n" * 1000:
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        started = time.monotonic()
        thread.start()
        try:
            assert b"408 Request Timeout" in read_all(connection)
            assert time.monotonic() - started < 8
        finally:
            stop.set()
            thread.join()


def test_connections_of_one_address_are_bounded_and_freed(tmp_path: Path) -> None:
    bounds = Bounds(connections_per_address=3, handshake_seconds=60)
    with endpoint(tmp_path, SERVED, bounds=bounds) as running:
        idle = [socket.create_connection((HOST, running.port), timeout=10) for _ in range(3)]
        try:
            await_counts(running, connections=3)
            assert refused(running.client())
            assert running.service.counts["refused_connections"] == 1
        finally:
            for connection in idle:
                connection.close()
        await_counts(running, connections=0)
        assert running.client().predict([[1, 1]])[0] == 200


def await_counts(running: Endpoint, *, connections: int) -> None:
    deadline = time.monotonic() + 10
    while len(running.service._tasks) != connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(running.service._tasks) == connections


def test_one_client_is_limited_and_the_others_are_not(tmp_path: Path) -> None:
    with endpoint(tmp_path, SERVED, rows_per_minute=8) as running:
        assert [running.client(1).predict([[1, 1]] * 2)[0] for _ in range(3)] == [200, 200, 429]
        status, value, headers = running.client(1).predict([[1, 1]])
        assert status == 429 and value["error"].startswith("too many rows for now; come again in ")
        assert 1 <= int(headers["Retry-After"]) <= 15
        assert running.client(2).predict([[1, 1]])[0] == 200


def test_a_malformed_request_counts_as_a_row(tmp_path: Path) -> None:
    with endpoint(tmp_path, SERVED, rows_per_minute=8) as running:
        for _ in range(4):
            running.client().request("GET", "/nothing")
        assert running.client().request("GET", "/v1/model")[0] == 429


def test_a_slow_model_makes_clients_wait_and_then_turns_them_away(tmp_path: Path) -> None:
    release = threading.Event()

    def slow(rows: Any) -> list[Any]:
        release.wait(20)
        return ["done"]

    bounds = Bounds(answer_seconds=0.5, waiting=1)
    with endpoint(tmp_path, Served(shape=(2,), about={}, predict=slow), bounds=bounds) as running:
        try:
            assert running.client().predict([[1, 1]])[:2] == (503, {"error": "the prediction took too long"})
            assert running.client().predict([[1, 1]])[:2] == (503, {"error": "busy; come again"})
        finally:
            release.set()
        deadline = time.monotonic() + 10
        while (status := running.client().predict([[1, 1]])[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status == 200


def test_the_endpoint_listens_on_one_address_only() -> None:
    for address in ("0.0.0.0", "", "::"):
        with pytest.raises(PredictorError, match="the endpoint must listen on one address of the node"):
            bind(address, 0)


def test_a_taken_port_is_a_clear_error() -> None:
    with bind(HOST, 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PredictorError, match=f"the endpoint cannot listen on {HOST}:{port}: Address already in use"
        ):
            bind(HOST, port)


def test_what_is_parsed_is_float32_in_the_models_shape() -> None:
    from holdfast_node.predict.requests import parse_rows

    rows = parse_rows(b'{"data": [[[1, 2.5]], [[3, 4e1]]]}', shape=(1, 2), max_rows=2)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[[1, 2.5]], [[3, 40]]]
