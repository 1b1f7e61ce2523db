"""libaio by raw system calls, on ordinary files: numbers, results, bounds. Endpoints are for the e2e tests."""

import ctypes
import errno
import mmap
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from gadget.usb.aio import AioContext, Command
from gadget.usb.endpoint import DEEP, Endpoint, Transfer, open_file

DEPTH = 4


@pytest.fixture
def aio() -> Iterator[AioContext]:
    try:
        context = AioContext(DEPTH)
    except OSError as error:
        pytest.skip(f"no AIO here: {error}")
    yield context
    context.close()


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, 8192)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def reap(aio: AioContext) -> list[tuple[int, int]]:
    """All that is outstanding."""
    ended: list[tuple[int, int]] = []
    while aio.outstanding:
        assert select.select([aio.eventfd], [], [], 5)[0], f"{aio.outstanding} transfers do not end"
        ended += aio.completions()
    return ended


def test_a_write_and_a_read_move_the_bytes_and_say_how_many(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    memory[:5] = b"hello"
    number = aio.submit(Command.PWRITE, file, address_of(memory), 5)
    assert reap(aio) == [(number, 5)]
    number = aio.submit(Command.PREAD, file, address_of(memory) + 4096, 4096)
    assert reap(aio) == [(number, 5)]  # the end of the file
    assert memory[4096:4101] == b"hello"


def test_the_eventfd_is_readable_only_while_there_is_something(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    assert not select.select([aio.eventfd], [], [], 0)[0]
    aio.submit(Command.PWRITE, file, address_of(memory), 1)
    assert select.select([aio.eventfd], [], [], 5)[0]
    assert len(aio.completions()) == 1
    assert not select.select([aio.eventfd], [], [], 0)[0]
    assert aio.completions() == []


def test_an_end_that_is_not_told_is_found_by_who_looks(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    quiet = aio.submit(Command.PWRITE, file, address_of(memory), 1, told=False)
    told = aio.submit(Command.PWRITE, file, address_of(memory), 2)
    assert os.eventfd_read(aio.eventfd) == 1
    assert sorted(aio.completions(reset=False)) == sorted([(quiet, 1), (told, 2)])
    aio.submit(Command.PWRITE, file, address_of(memory), 3)  # the same iocb as one that was not told
    assert select.select([aio.eventfd], [], [], 5)[0]


def test_a_bad_address_is_that_transfers_result_and_nobody_elses(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    good = aio.submit(Command.PWRITE, file, address_of(memory), 8)
    bad = aio.submit(Command.PWRITE, file, 8, 8)
    assert sorted(reap(aio)) == sorted([(good, 8), (bad, -errno.EFAULT)])


def test_a_closed_fd_is_told_ebadf_at_once_and_takes_no_place(aio: AioContext, memory: mmap.mmap) -> None:
    with pytest.raises(OSError, match="io_submit") as caught:
        aio.submit(Command.PREAD, 999999, address_of(memory), 1)
    assert caught.value.errno == errno.EBADF
    assert aio.outstanding == 0


def test_depth_transfers_fit_and_one_more_is_told_eagain(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    numbers = [aio.submit(Command.PWRITE, file, address_of(memory), 1) for _ in range(DEPTH)]
    assert len(set(numbers)) == DEPTH == aio.outstanding
    with pytest.raises(BlockingIOError, match="all 4 transfers are outstanding") as caught:
        aio.submit(Command.PWRITE, file, address_of(memory), 1)
    assert caught.value.errno == errno.EAGAIN
    assert sorted(number for number, _ in reap(aio)) == sorted(numbers)
    aio.submit(Command.PWRITE, file, address_of(memory), 1)


def test_writes_are_counted_and_reads_are_not(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    for command in (Command.PWRITE, Command.PREAD, Command.PWRITE):
        aio.submit(command, file, address_of(memory), 1)
    assert aio.writes == 2


def test_close_twice_is_harmless(aio: AioContext, memory: mmap.mmap, file: int) -> None:
    aio.submit(Command.PWRITE, file, address_of(memory), 1)
    aio.close()
    aio.close()


def test_an_endpoint_gives_the_kernel_so_many_transfers_in_order_and_keeps_the_rest(
    tmp_path: Path, memory: mmap.mmap
) -> None:
    (tmp_path / "ep").touch()
    aio = AioContext(2 * DEEP)
    endpoint = Endpoint("ep", open_file(tmp_path / "ep"), Command.PWRITE, aio)
    transfers = [Transfer(None, address_of(memory) + index, 512, 1) for index in range(DEEP + 3)]
    endpoint.queue(transfers)
    endpoint.pump()
    assert aio.outstanding == DEEP
    first = [endpoint.ended(number) for number, _ in reap(aio)]
    assert first == transfers[:DEEP]
    endpoint.pump()
    assert [endpoint.ended(number) for number, _ in reap(aio)] == transfers[DEEP:]
    aio.close()
    os.close(endpoint.fd)


def test_a_forgotten_transfer_is_nobodys_when_it_ends(tmp_path: Path, memory: mmap.mmap) -> None:
    (tmp_path / "ep").touch()
    aio = AioContext(2 * DEEP)
    endpoint = Endpoint("ep", open_file(tmp_path / "ep"), Command.PWRITE, aio)
    endpoint.queue([Transfer(None, address_of(memory), 512, 1)] * (DEEP + 1))
    endpoint.pump()
    assert endpoint.forget() == DEEP
    assert [endpoint.ended(number) for number, _ in reap(aio)] == [None] * DEEP
    endpoint.pump()
    assert aio.outstanding == 0  # what had waited is gone too
    aio.close()
    os.close(endpoint.fd)


def test_a_gathered_transfer_is_made_of_the_pieces_in_order(tmp_path: Path, memory: mmap.mmap) -> None:
    (tmp_path / "ep").touch()
    aio = AioContext(DEEP)
    endpoint = Endpoint("ep", open_file(tmp_path / "ep"), Command.PWRITE, aio)
    memory[:6] = b"abcdef"
    base = address_of(memory)
    iovecs = ctypes.create_string_buffer(struct.pack("<QQQQ", base + 4, 2, base, 3))
    endpoint.gather(ctypes.addressof(iovecs), 2, 5)
    assert endpoint.in_flight == 1
    ((number, result),) = reap(aio)
    ended = endpoint.ended(number)
    assert ended is not None and result == ended.expected == 5
    assert (tmp_path / "ep").read_bytes() == b"efabc"
    aio.close()
    os.close(endpoint.fd)
