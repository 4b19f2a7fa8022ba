from pathlib import Path

from holdfast_node.logship import STUNNEL_NOISE, Tail


def test_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    log = tmp_path / "trainer.log"
    tail = Tail(log)
    assert tail.lines() is None
    log.write_bytes(b"one\ntwo\nhalf")
    assert tail.lines() == [b"one", b"two"]
    assert tail.lines() is None
    with log.open("ab") as file:
        file.write(b" a line\n")
    assert tail.lines() == [b"half a line"]


def test_last_unfinished_line_is_given_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_bytes(b"one\nlast")
    assert Tail(tmp_path / "trainer.log").lines(all_of_it=True) == [b"one", b"last"]


def test_stunnel_s_noise_is_left_out_and_its_warnings_are_kept(tmp_path: Path) -> None:
    stamp = b"2026.11.22 06:42:33 "
    kept = [stamp + b"LOG4[0]: refused", stamp + b"LOG5[ui]: started", b'{"op": "2026.11.22 06:42:33 LOG6[0]: x"}']
    (tmp_path / "tunnel.log").write_bytes(b"\n".join([stamp + b"LOG6[0]: step", *kept, b""]))
    assert Tail(tmp_path / "tunnel.log", STUNNEL_NOISE).lines() == kept


def test_other_logs_are_kept_whole(tmp_path: Path) -> None:
    line = b"2026.11.22 06:42:33 LOG6[0]: printed by a script"
    (tmp_path / "trainer.log").write_bytes(line + b"\n")
    assert Tail(tmp_path / "trainer.log").lines() == [line]


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_bytes(b"x" * (1 << 20))
    lines = Tail(tmp_path / "trainer.log").lines()
    assert lines is not None
    assert [len(line) for line in lines] == [16 << 10]


def test_a_flood_of_short_lines_comes_in_batches_that_the_service_takes(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_bytes(b"x\n" * 12_000)
    tail = Tail(tmp_path / "trainer.log")
    assert [len(tail.lines() or []) for _ in range(4)] == [5000, 5000, 2000, 0]
