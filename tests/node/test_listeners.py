import socket

import pytest

from holdfast_node.contract.errors import HoldfastError
from holdfast_node.listeners import await_listener, is_listening, require_free


def test_taken_port_is_named() -> None:
    with socket.create_server(("127.79.1.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_listening("127.79.1.1", port)
        assert not is_listening("127.79.1.2", port)
        with pytest.raises(HoldfastError, match=rf"the tunnel must listen on 127\.79\.1\.1:{port}, and the port is"):
            require_free("127.79.1.1", port, "the tunnel")
    require_free("127.79.1.1", port, "the tunnel")


def test_a_listener_on_all_addresses_takes_the_port_too() -> None:
    # The table's text is given: nothing listens on all addresses here.
    from holdfast_node.listeners import listening

    row = "   0: 00000000:2383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
    assert listening("header\n" + row, "127.79.1.1", 0x2383)
    assert not listening("header\n" + row.replace(" 0A ", " 01 "), "127.79.1.1", 0x2383)


def test_missing_listener_is_an_error_after_its_time() -> None:
    with pytest.raises(HoldfastError, match=r"the tunnel did not listen on 127\.79\.1\.1:1 within 0\.1 s; see its log"):
        await_listener("127.79.1.1", 1, "the tunnel", 0.1)
