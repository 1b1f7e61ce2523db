"""What a source answers in its role's loop, because nothing has to be waited for; and what it leaves to threads."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from common.wire import Op
from host.source import file as beneath
from host.source.core import Job
from host.source.executor import Executor
from host.source.file import in_memory, open_path
from host.source.latch import Latch
from host.source.noise import NoiseSource

BLOCK, SIZE = 4096, 16 * 4096


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on a tmpfs."""
    with TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


def served(path: Path, read_only: bool = False) -> Executor:
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return Executor(open_path(path, read_only), Latch(path.parent / "failed" / "latch"))


def job(op: Op, block: int = 0, blocks: int = 1) -> Job:
    return Job(1, 1, op, 0, block * BLOCK, blocks * BLOCK)


def arena() -> memoryview:
    return memoryview(bytearray(os.urandom(SIZE)))


def refusing(number: int, asked: list[int]) -> Callable[..., int]:
    """preadv2(2) that ends with this errno."""

    def call(fd: int, buffers: object, offset: int, flags: int = 0) -> int:
        asked.append(flags)
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_in_memory_is_read_and_written_at_once(memory: Path) -> None:
    executor, data = served(memory / "disk.img"), arena()
    assert in_memory(os.open(memory / "disk.img", os.O_RDONLY))
    assert executor.do_now(job(Op.WRITE, 3, 2), data) == 0
    back = arena()
    assert executor.do_now(job(Op.READ, 3, 2), back) == 0
    assert (
        back[: 2 * BLOCK] == data[: 2 * BLOCK] == memoryview((memory / "disk.img").read_bytes())[3 * BLOCK : 5 * BLOCK]
    )
    assert executor.ledger.unflushed == 2 * BLOCK, "the books are kept as a thread would"


def test_what_would_wait_for_the_disk_is_left_to_a_thread_and_tried_again_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, asked = served(tmp_path / "disk.img"), list[int]()
    executor.source._now_flags = [os.RWF_NOWAIT] * 2  # type: ignore[attr-defined]
    monkeypatch.setattr(beneath.os, "preadv", refusing(errno.EAGAIN, asked))
    assert [executor.do_now(job(Op.READ), arena()) for _ in range(2)] == [None, None]
    assert asked == [os.RWF_NOWAIT] * 2


def test_a_file_system_that_does_not_know_it_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, asked = served(tmp_path / "disk.img"), list[int]()
    monkeypatch.setattr(beneath.os, "pwritev", refusing(errno.EOPNOTSUPP, asked))
    assert [executor.do_now(job(Op.WRITE), arena()) for _ in range(3)] == [None] * 3
    assert len(asked) == 1
    assert executor.ledger.unflushed == 0


def test_a_part_is_no_answer(memory: Path) -> None:
    executor = served(memory / "disk.img")
    os.truncate(memory / "disk.img", BLOCK // 2)
    assert executor.do_now(job(Op.READ), arena()) is None
    assert executor.do(job(Op.READ), arena()) == errno.EIO


@pytest.mark.parametrize(
    "one", [replace(job(Op.WRITE), fua=True), *(job(op) for op in (Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES))]
)
def test_what_waits_for_stable_storage_or_a_file_system_is_a_threads(memory: Path, one: Job) -> None:
    assert served(memory / "disk.img").do_now(one, arena()) is None


def test_after_a_failed_flush_nothing_is_written_at_once(memory: Path) -> None:
    executor = served(memory / "disk.img")
    executor._latch.set("fdatasync failed")
    assert executor.do_now(job(Op.WRITE), arena()) is None
    assert executor.do(job(Op.WRITE), arena()) == errno.EIO


def test_errors_are_told_at_once_with_their_errno(memory: Path) -> None:
    executor = served(memory / "disk.img", read_only=True)
    assert executor.do_now(job(Op.WRITE), arena()) == errno.EROFS
    assert executor.do_now(job(Op.READ, 15, 2), arena()) == errno.EINVAL


def test_a_source_that_may_wait_answers_nothing_at_once(memory: Path) -> None:
    noise = NoiseSource("7", SIZE)
    assert Executor(noise, Latch(memory / "failed" / "latch")).do_now(job(Op.READ), arena()) is None
