"""A source: its fence between generations of usb, and its operations on real files, errno for errno."""

import ctypes
import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Exit, Refused, WireError
from common.wire import ExportRecord, Op
from common.wire_v1 import RequestFlag
from host.source.core import Action, Complete, Job, SourceCore, Unmap
from host.source.executor import Executor
from host.source.file import open_path
from host.source.latch import Latch
from host.source.role import check, grown

BLOCK = 4096
SIZE = 64 * BLOCK
ARENA = 1 << 20
RECORD = ExportRecord(0x11, BLOCK, SIZE)


def core(generation: int = 1) -> SourceCore:
    source = SourceCore(RECORD)
    source.peer(generation)
    source.arena(generation, ARENA)
    return source


def jobs(actions: list[Action]) -> list[Job]:
    return [action for action in actions if isinstance(action, Job)]


# -- the fence ---------------------------------------------------------------------------------------------------
def test_requests_become_jobs_with_offsets_in_bytes() -> None:
    assert core().requests([[1, Op.WRITE, 8192, 3, 2, 0]]) == [Job(1, 1, Op.WRITE, 8192, 3 * BLOCK, 2 * BLOCK)]


def test_completion_carries_the_status_and_an_errno_too_large_for_the_wire_is_eio() -> None:
    source = core()
    first, second = jobs(source.requests([[1, Op.READ, 0, 0, 1, 0], [2, Op.READ, 0, 0, 1, 0]]))
    assert source.finished(first, errno.ENOSPC) == [Complete(1, errno.ENOSPC)]
    assert source.finished(second, 512) == [Complete(2, errno.EIO)]


@pytest.mark.parametrize(("status", "told"), [(0, 0), (255, 255), (256, errno.EIO), (-1, errno.EIO)])
def test_a_status_is_told_as_far_as_a_byte_goes(status: int, told: int) -> None:
    source = core()
    (job,) = jobs(source.requests([[1, Op.READ, 0, 0, 1, 0]]))
    assert source.finished(job, status) == [Complete(1, told)]


def test_nothing_of_a_new_usb_starts_before_all_older_work_has_ended() -> None:
    source = core(1)
    one, two = jobs(source.requests([[1, Op.WRITE, 0, 0, 1, 0], [2, Op.WRITE, 0, 1, 1, 0]]))
    assert source.peer(2) == []
    source.arena(2, ARENA)
    assert source.requests([[1, Op.READ, 0, 0, 1, 0]]) == []
    assert source.finished(one, 0) == [], "nobody waits for the completion of a dead usb's write"
    assert source.finished(two, 0) == [Unmap(1), Job(2, 1, Op.READ, 0, 0, BLOCK)]


def test_arena_of_a_dead_usb_is_let_go_at_once_when_nothing_runs() -> None:
    source = core(1)
    job = jobs(source.requests([[1, Op.FLUSH, 0, 0, 0, 0]]))[0]
    source.finished(job, 0)
    assert source.peer(2) == [Unmap(1)]


def test_what_waited_for_the_fence_is_void_when_usb_dies_once_more() -> None:
    source = core(1)
    old = jobs(source.requests([[1, Op.WRITE, 0, 0, 1, 0]]))[0]
    source.peer(2)
    source.arena(2, ARENA)
    source.requests([[1, Op.WRITE, 0, 9, 1, 0]])
    assert source.peer(3) == [Unmap(2)]
    source.arena(3, ARENA)
    assert source.requests([[1, Op.READ, 0, 5, 1, 0]]) == []
    assert source.finished(old, 0) == [Unmap(1), Job(3, 1, Op.READ, 0, 5 * BLOCK, BLOCK)]


def test_request_said_twice_is_done_once() -> None:
    source = core()
    assert len(source.requests([[1, Op.READ, 0, 0, 1, 0]])) == 1
    assert source.requests([[1, Op.READ, 0, 0, 1, 0]]) == []


@pytest.mark.parametrize(
    "item",
    [
        [1, Op.READ, 0, 64, 1, 0],
        [1, Op.READ, 0, 0, 0, 0],
        [1, Op.WRITE, ARENA - BLOCK + 1, 0, 1, 0],
        [1, Op.DISCARD, 0, 63, 2, 0],
    ],
)
def test_request_outside_export_or_arena_is_told_einval(item: list[int]) -> None:
    assert core().requests([item]) == [Complete(1, errno.EINVAL)]


def test_last_block_and_last_bytes_of_the_arena_are_allowed() -> None:
    assert len(jobs(core().requests([[1, Op.READ, ARENA - BLOCK, 63, 1, 0]]))) == 1


@pytest.mark.parametrize("body", [None, {}, [1], [[1, 2, 3]], [[1, 9, 0, 0, 1, 0]], [[1, 0, -1, 0, 1, 0]], [["1"] * 6]])
def test_malformed_requests_are_one_error(body: object) -> None:
    with pytest.raises(WireError, match=r"^(REQUESTS|request)"):
        core().requests(body)


def test_batch_with_one_malformed_request_is_dropped_whole() -> None:
    source = core()
    with pytest.raises(WireError, match="request None is not six numbers"):
        source.requests([[1, 0, 0, 0, 1, 0], None])
    assert (source.running, source.waiting) == (0, 0)


def test_requests_before_the_arena_was_named_are_one_error() -> None:
    source = SourceCore(RECORD)
    source.peer(1)
    with pytest.raises(WireError, match="REQUESTS before the arena was named"):
        source.requests([[1, Op.FLUSH, 0, 0, 0, 0]])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=80))
def test_generations_never_run_together(steps: list[tuple[int, int]]) -> None:
    source, generation, sequence = core(1), 1, 0
    running: list[Job] = []
    mapped = {1}
    for kind, number in steps:
        actions: list[Action] = []
        if kind == 0:
            generation += 1
            mapped.add(generation)
            actions = source.peer(generation)
            source.arena(generation, ARENA)
        elif kind in (1, 2):
            sequence += 1
            actions = source.requests([[sequence, number % 4, 0, number, 1, 0]])
        elif running:
            actions = source.finished(running.pop(number % len(running)), 0)
        for action in actions:
            if isinstance(action, Unmap):
                assert action.generation != generation
                assert not any(job.generation == action.generation for job in running)
                mapped.remove(action.generation)
            elif isinstance(action, Job):
                running.append(action)
        assert len({job.generation for job in running}) <= 1
        assert {job.generation for job in running} <= mapped


# -- the file ----------------------------------------------------------------------------------------------------
@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def open_file(path: Path, read_only: bool) -> Executor:
    source = open_path(path, read_only)
    check(source, str(path), RECORD, source.identity)
    return Executor(source, Latch(path.parent / f".{path.name}.failed" / "latch"))


@pytest.fixture
def opened(image: Path) -> Iterator[Executor]:
    file = open_file(image, False)
    yield file
    file.source.close()


def job(op: Op, block: int = 0, blocks: int = 1, arena_offset: int = 0) -> Job:
    return Job(1, 1, op, arena_offset, block * BLOCK, blocks * BLOCK)


def test_write_then_read_moves_exactly_the_bytes_meant(opened: Executor, image: Path) -> None:
    arena = memoryview(bytearray(os.urandom(ARENA)))
    before = image.read_bytes()
    assert opened.do(job(Op.WRITE, 3, 2, arena_offset=8192), arena) == 0
    want = before[: 3 * BLOCK] + bytes(arena[8192 : 8192 + 2 * BLOCK]) + before[5 * BLOCK :]
    assert image.read_bytes() == want
    back = memoryview(bytearray(ARENA))
    assert opened.do(job(Op.READ, 0, 64, arena_offset=4096), back) == 0
    assert bytes(back) == bytes(4096) + want + bytes(ARENA - 4096 - SIZE)


def test_flush_of_a_file_succeeds(opened: Executor) -> None:
    assert opened.do(job(Op.FLUSH), memoryview(b"")) == 0


def test_unflushed_bytes_are_those_of_writes_since_the_last_flush_that_succeeded(
    opened: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = memoryview(bytearray(ARENA))
    assert opened.do(job(Op.WRITE, 3, 2), arena) == opened.do(job(Op.READ, 3, 2), arena) == 0
    assert opened.ledger.unflushed == 2 * BLOCK
    assert opened.do(job(Op.FLUSH), arena) == 0 and opened.ledger.unflushed == 0
    assert opened.do(replace(job(Op.WRITE), fua=True), arena) == 0 and opened.ledger.unflushed == 0
    assert opened.do(job(Op.WRITE_ZEROES, 3), arena) == 0 and opened.ledger.unflushed == BLOCK

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fdatasync", fails)
    assert opened.do(job(Op.FLUSH), arena) == errno.EIO and opened.ledger.unflushed == BLOCK


def test_discard_makes_a_hole_that_reads_as_zeroes_and_keeps_the_size(opened: Executor, image: Path) -> None:
    status = opened.do(job(Op.DISCARD, 4, 4), memoryview(b""))
    if status == errno.EOPNOTSUPP:
        pytest.skip("this file system has no holes (fallocate: EOPNOTSUPP)")
    assert status == 0
    assert image.read_bytes()[4 * BLOCK : 8 * BLOCK] == bytes(4 * BLOCK)
    assert image.stat().st_size == SIZE


def test_read_of_a_file_that_was_cut_short_is_told_eio(opened: Executor, image: Path) -> None:
    os.truncate(image, 10 * BLOCK + 100)
    arena = memoryview(bytearray(ARENA))
    assert opened.do(job(Op.READ, 9, 1), arena) == 0
    assert opened.do(job(Op.READ, 10, 1), arena) == errno.EIO
    assert opened.do(job(Op.READ, 40, 1), arena) == errno.EIO


def test_read_only_source_reads_and_refuses_to_write(image: Path) -> None:
    file = open_file(image, True)
    arena = memoryview(bytearray(ARENA))
    assert file.do(job(Op.READ), arena) == 0
    assert file.do(job(Op.WRITE), arena) == errno.EROFS
    assert file.do(job(Op.DISCARD), arena) == errno.EROFS
    assert file.do(job(Op.FLUSH), arena) == 0
    file.source.close()


def test_failed_fdatasync_is_told_and_latches_the_export(
    opened: Executor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    arena = memoryview(bytearray(ARENA))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        assert opened.do(job(Op.FLUSH), arena) == errno.EIO
    assert opened.failed is not None and opened.failed.startswith("flush: Input/output error")
    before = image.read_bytes()
    assert [opened.do(job(op), arena) for op in (Op.FLUSH, Op.WRITE, Op.DISCARD)] == [errno.EIO] * 3
    assert image.read_bytes() == before
    assert opened.do(job(Op.READ), arena) == 0, "what is there can still be read"


def test_failure_is_recorded_before_it_is_answered_and_a_successor_never_flushes_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = open_file(image, False)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        assert file.do(job(Op.FLUSH), memoryview(b"")) == errno.ENOSPC
    file.source.close()
    successor = open_file(image, False)  # the kernel would tell it nothing: its fdatasync succeeds
    arena = memoryview(bytearray(ARENA))
    assert [successor.do(job(op), arena) for op in (Op.FLUSH, Op.WRITE, Op.DISCARD)] == [errno.EIO] * 3
    assert successor.do(job(Op.READ), arena) == 0
    assert successor.failed == "flush: No space left on device: acknowledged writes may be lost"
    successor.source.close()


def test_of_two_flushes_at_once_the_second_fails_with_the_first(
    opened: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go, calls = threading.Event(), threading.Event(), []

    def first_fails(fd: int) -> None:  # as the kernel does: an error is told once to each descriptor
        calls.append(fd)
        if len(calls) == 1:
            inside.set()
            assert go.wait(10), "the test never let the first fdatasync go"
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", first_fails)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened.do, job(Op.FLUSH), memoryview(b""))
        assert inside.wait(10), "the first FLUSH never reached fdatasync"
        second = pool.submit(opened.do, job(Op.FLUSH), memoryview(b""))
        assert not wait([second], timeout=0.2).done, "the second waits for the first"
        go.set()
        assert (first.result(10), second.result(10)) == (errno.EIO, errno.EIO)
    assert len(calls) == 1


def test_record_of_a_failure_cut_short_by_a_kill_is_still_a_failure(tmp_path: Path) -> None:
    latch = Latch(tmp_path / "failed" / "one")
    assert latch.reason is None and (tmp_path / "failed" / "one").stat().st_size == 4096
    with open(tmp_path / "failed" / "one", "r+b") as file:
        file.write(b"f")
    assert Latch(tmp_path / "failed" / "one").reason == "f"


def test_full_file_system_is_told_enospc_and_reads_go_on(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(mount), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        image = mount / "disk.img"
        image.touch()
        os.truncate(image, SIZE)
        file = open_file(image, False)
        arena = memoryview(bytearray(ARENA))
        assert file.do(job(Op.WRITE, 0, 8), arena) == 0
        assert file.do(job(Op.WRITE, 16, 48), arena) == errno.ENOSPC
        assert file.do(job(Op.READ, 0, 8), arena) == 0
        file.source.close()
    finally:
        libc.umount2(os.fsencode(mount), 2)


def test_file_served_by_another_process_is_refused_as_busy(image: Path) -> None:
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        ["python3", "-c", script, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        for read_only in (False, True):
            with pytest.raises(Refused, match="already served") as refused:
                open_file(image, read_only)
            assert refused.value.status is Exit.BUSY
        other.stdin.close()
    open_file(image, False).source.close()


def test_file_may_be_served_read_only_twice(image: Path) -> None:
    one, two = open_file(image, True), open_file(image, True)
    with open(image, "r+b") as writer, pytest.raises(BlockingIOError):
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    one.source.close()
    two.source.close()


def test_file_of_another_size_than_announced_is_refused(image: Path) -> None:
    os.truncate(image, SIZE - 1)
    with pytest.raises(Refused, match="has 262143 bytes, but 262144 were announced"):
        open_file(image, False)


def test_a_file_that_has_grown_serves_on_what_was_announced_of_it_and_says_so(image: Path) -> None:
    assert grown(str(image), SIZE) == 0
    os.truncate(image, SIZE + 512)
    open_file(image, False).source.close()
    assert grown(str(image), SIZE) == SIZE + 512
    assert grown("random:7?size=1M", SIZE) == 0


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="neither a file nor a block device"):
        open_file(tmp_path, False)


def test_missing_file_is_enoent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none", False)


def test_a_fua_write_is_synced_before_it_is_answered_and_a_plain_one_is_not(
    opened: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    arena = memoryview(bytearray(ARENA))
    assert opened.do(job(Op.WRITE), arena) == 0 and synced == []
    assert opened.do(replace(job(Op.WRITE), fua=True), arena) == 0 and len(synced) == 1


def test_a_fua_write_whose_sync_fails_is_told_and_latches_the_export(
    opened: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    arena = memoryview(bytearray(ARENA))
    assert opened.do(replace(job(Op.WRITE), fua=True), arena) == errno.EIO
    assert opened.failed is not None


def test_fua_reaches_the_job() -> None:
    assert core().requests([[1, Op.WRITE, 8192, 3, 2, 1]]) == [Job(1, 1, Op.WRITE, 8192, 3 * BLOCK, 2 * BLOCK, True)]


def test_write_zeroes_zeroes_exactly_its_blocks(opened: Executor, image: Path) -> None:
    image.write_bytes(b"\xff" * SIZE)
    assert opened.do(job(Op.WRITE_ZEROES, 3, 2), memoryview(bytearray(ARENA))) == 0
    expected = bytearray(b"\xff" * SIZE)
    expected[3 * BLOCK : 5 * BLOCK] = bytes(2 * BLOCK)
    assert image.read_bytes() == expected


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes_give_space_back_where_they_may_and_only_there(image: Path, unmap: bool) -> None:
    """A v1 gadget says NO_UNMAP when its block layer did (blkdev_issue_zeroout with BLKDEV_ZERO_NOUNMAP)."""
    image.write_bytes(b"x" * SIZE)
    source = open_path(image, read_only=False)
    before = image.stat().st_blocks
    source.write_zeroes(0, SIZE // 2, unmap)
    source.close()
    assert image.read_bytes() == bytes(SIZE // 2) + b"x" * (SIZE - SIZE // 2)
    assert (image.stat().st_blocks < before) is unmap


@pytest.mark.parametrize(("flags", "unmap"), [(0, True), (int(RequestFlag.NO_UNMAP), False)])
def test_no_unmap_reaches_the_source(flags: int, unmap: bool) -> None:
    [zeroes] = jobs(core().requests([[1, int(Op.WRITE_ZEROES), 0, 0, 1, flags]]))
    assert zeroes.unmap is unmap
