"""A source's file, and the threads that work on it. The source and its latch are the product's, upon model calls.

Copies pread, pwrite, fdatasync and hole punching of a regular file (tests/unit/test_host_source_live.py,
tests/e2e/test_host_attachment.py::test_discard_frees_the_bytes). A killed source's threads may still finish what they
were in while the process dies: the successor is forked only after that (the pidfd tells of the last thread).
"""

import os
from collections import deque
from types import SimpleNamespace
from typing import Any, Self

from common import limits
from common.wire import Op
from host.source.core import Job
from host.source.file import FileSource
from host.source.interface import Can, Geometry
from host.source.latch import Latch
from tests.sim.checker import BLOCK
from tests.sim.processes import JOB
from tests.sim.trouble import Trouble
from tests.sim.world import Killed, World


class Disk:
    """The bytes of one export: what a crash of the host would leave (`durable`), and what a reader sees."""

    def __init__(self, world: World, size_bytes: int) -> None:
        self.world = world
        self.bytes = bytearray(size_bytes)
        self.durable = bytes(size_bytes)
        self.trouble: Trouble | None = None
        # A disk that is slow at times: what was begun before a fault may land long after it.
        self.slow_share, self.slow_s = world.random.choice(((0.03, 20e-3), (0.2, 0.2), (0.1, 0.6)))

    def moved(self, op: Op, offset: int, size_bytes: int) -> int:
        """A read or write of so much begins: how much of it is done, unless it fails."""
        self.world.counts[f"source {op.name}"] += 1
        return size_bytes if self.trouble is None else self.trouble.moves(op, offset, size_bytes)

    def wrote(self, offset: int, data: Any) -> None:
        self.bytes[offset : offset + len(data)] = data
        if self.trouble is not None:
            self.trouble.dirty |= set(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1))

    def written_back(self) -> None:
        """All that is dirty. What was dirty when an fdatasync failed is not, and never comes to the disk by itself."""
        if self.trouble is None:
            self.durable = bytes(self.bytes)
            return
        durable = bytearray(self.durable)
        for block in self.trouble.dirty:
            there = slice(block * BLOCK, (block + 1) * BLOCK)
            durable[there] = self.bytes[there]
        self.durable = bytes(durable)
        self.trouble.dirty.clear()

    def longest_s(self, job: Job) -> float:
        """It takes no longer."""
        return self.slow_s if self.world.random.random() < self.slow_share else 1e-3


class _NoMoreWork(BaseException):
    """Ends the loop of a worker after one job."""


class SimSource(FileSource):
    """Opened by the name of its disk."""

    disks: dict[str, Disk] = {}

    def __init__(self, name: str, read_only: bool) -> None:
        self.disk, self.identity = SimSource.disks[name], f"disk {name}"
        self._fd = sorted(SimSource.disks).index(name)
        self.geometry = Geometry(len(self.disk.bytes))
        self.can = Can(0) if read_only else Can.WRITE | Can.DISCARD | Can.WRITE_ZEROES
        self._can_now = [False, False]  # each job is a thread's, which blocks

    def close(self) -> None: ...


# -- the calls of host.source.file, on a descriptor that is the number of a disk ---------------------------------------
def _disk(fd: int) -> Disk:
    return SimSource.disks[sorted(SimSource.disks)[fd]]


def _dies_here() -> None:
    """A call that its process did not survive came to its end in the kernel, and nobody saw it return."""
    from tests.sim.run import here

    if not here().current_process.alive:
        raise Killed


def _preadv(fd: int, views: list[memoryview], offset: int) -> int:
    (into,) = views
    disk = _disk(fd)
    count = disk.moved(Op.READ, offset, len(into))
    into[:count] = disk.bytes[offset : offset + count]
    _dies_here()
    return count


def _pwritev(fd: int, views: list[memoryview], offset: int) -> int:
    (data,) = views
    disk = _disk(fd)
    count = disk.moved(Op.WRITE, offset, len(data))
    disk.wrote(offset, data[:count])
    _dies_here()
    return count


def _fdatasync(fd: int) -> None:
    from tests.sim.run import here

    disk = _disk(fd)
    disk.world.counts["source FLUSH"] += 1
    if disk.trouble is not None and here().current_process.alive:
        disk.trouble.strike(Op.FLUSH, 0, 0)
    disk.written_back()
    _dies_here()


def fallocated(fd: int, mode: int, offset: int, size_bytes: int) -> bool:
    """Of a DISCARD and of WRITE_ZEROES alike: a hole is punched, or zeroes are."""
    from tests.sim.run import here

    disk, op = _disk(fd), here().job.op
    disk.world.counts[f"source {op.name}"] += 1
    if disk.trouble is not None:
        disk.trouble.strike(op, offset, size_bytes)
    disk.wrote(offset, bytes(size_bytes))
    _dies_here()
    return True


FILE_OS = SimpleNamespace(
    preadv=_preadv,
    pwritev=_pwritev,
    fdatasync=_fdatasync,
    lseek=lambda fd, offset, whence: len(_disk(fd).bytes),
    SEEK_END=os.SEEK_END,
)


class SimLatch(Latch):
    """Its file is a page that the run keeps, whoever dies."""

    def __init__(self, export_id: int) -> None:
        super().__init__(SimpleNamespace(parent=SimpleNamespace(mkdir=lambda mode, exist_ok: None), fd=export_id))  # type: ignore[arg-type]

    @classmethod
    def of(cls, runtime: Any, export_id: int) -> Self:
        return cls(export_id)


def _records() -> dict[int, bytearray]:
    from tests.sim.run import here

    return here().latches


def _record(fd: int, data: bytes, offset: int) -> int:
    _records()[fd][offset : offset + len(data)] = data
    return len(data)


LATCH_OS = SimpleNamespace(
    open=lambda place, flags, mode: place.fd,
    posix_fallocate=lambda fd, offset, size: _records().setdefault(fd, bytearray(size)) and None,
    pread=lambda fd, size, offset: bytes(_records()[fd][offset : offset + size]),
    pwrite=_record,
    **{name: getattr(os, name) for name in ("O_RDWR", "O_CREAT", "O_CLOEXEC", "O_NOFOLLOW")},
)


class JobQueue:
    """queue.SimpleQueue between a source's loop and its threads: each job runs later, a few at once."""

    def __init__(self) -> None:
        from tests.sim.run import here

        process = here().current
        assert process is not None
        self._process = process
        self._jobs: deque[Job] = deque()
        self._next: Job | None = None
        self.running = 0
        self.work: Any = None  # Source._work, told by the Thread that replaces its threads

    def put(self, job: Job) -> None:
        self._jobs.append(job)
        self._begin()

    def _begin(self) -> None:
        world = self._process.world
        while self._jobs and self.running < limits.SOURCE_THREADS and self._process.alive:
            job = self._jobs.popleft()
            self.running += 1
            disk = self.work.__self__._executor.source.disk
            world.soon(lambda job=job: self._run(job), 20e-6, disk.longest_s(job))  # type: ignore[misc]

    def _run(self, job: Job) -> None:
        from tests.sim.run import here

        process, world = self._process, self._process.world
        if process.stopped:
            world.after(1e-3, lambda: self._run(job))
            return
        if process.alive:
            process.struck(JOB)
        if not process.alive:
            if process.dead or world.perhaps(0.5):
                return  # it had not come so far
            world.counts["source job after kill"] += 1
        self.running -= 1
        self._next = here().job = job
        before, world.current = world.current, process
        try:
            self.work()
        except (_NoMoreWork, Killed):
            pass
        finally:
            world.current = before
        self._begin()

    def get(self) -> Job:
        job, self._next = self._next, None
        if job is None:
            raise _NoMoreWork
        return job


class WorkerThread:
    """threading.Thread of a source: its work is done by the JobQueue of the same process."""

    def __init__(self, target: Any, name: str = "", daemon: bool = True) -> None:
        self._target = target

    def start(self) -> None:
        self._target.__self__._jobs.work = self._target
