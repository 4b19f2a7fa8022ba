import socket
import threading

import pytest

from holdfast_local.hosts import nfs
from holdfast_local.hosts.errors import BootError


def test_only_a_null_call_is_answered() -> None:
    call = nfs.null_call(77)
    assert nfs.null_reply(call)[4:8] == call[4:8]
    assert nfs.null_reply(call[:-1]) == b""
    assert nfs.null_reply(call[:-1] + b"\1") == b""


def serve(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> threading.Thread:
    """Answer one connection in a file system's place: with these bytes, or as one does."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(nfs, "NFS_PORT", listener.getsockname()[1])

    def answer_one() -> None:
        with listener, listener.accept()[0] as connection:
            call = connection.recv(nfs.CALL_BYTES, socket.MSG_WAITALL)
            connection.sendall(nfs.null_reply(call) if answer is None else answer)

    thread = threading.Thread(target=answer_one, daemon=True)
    thread.start()
    return thread


def test_a_file_system_that_answers_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = serve(None, monkeypatch)
    nfs.ping("127.0.0.1", 5)
    thread.join(5)


def test_another_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = serve(b"x" * 28, monkeypatch)
    with pytest.raises(BootError, match=r"127\.0\.0\.1 answered something else than NFS version 4"):
        nfs.ping("127.0.0.1", 5)
    thread.join(5)


def test_no_answer_names_the_file_system_and_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(nfs, "NFS_PORT", listener.getsockname()[1])
        with pytest.raises(
            BootError, match=r"127\.0\.0\.1 does not answer on port \d+ \(timed out\); the security groups"
        ):
            nfs.ping("127.0.0.1", 0.2)
