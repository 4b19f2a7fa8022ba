from pathlib import Path

from holdfast_node.logship import Tail


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
    (tmp_path / "tunnel.log").write_bytes(b"x LOG6[0]: step\nx LOG4[0]: refused\nx LOG5[ui]: started\n")
    assert Tail(tmp_path / "tunnel.log").lines() == [b"x LOG4[0]: refused", b"x LOG5[ui]: started"]


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_bytes(b"x" * (1 << 20))
    lines = Tail(tmp_path / "trainer.log").lines()
    assert lines is not None
    assert [len(line) for line in lines] == [16 << 10]


def test_a_flood_of_short_lines_comes_in_batches_that_the_service_takes(tmp_path: Path) -> None:
    (tmp_path / "trainer.log").write_bytes(b"x\n" * 12_000)
    tail = Tail(tmp_path / "trainer.log")
    assert [len(tail.lines() or []) for _ in range(4)] == [5000, 5000, 2000, 0]
