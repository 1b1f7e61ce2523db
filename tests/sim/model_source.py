"""A source's file, and the threads that work on it.

Copies pread, pwrite, fdatasync and hole punching of a regular file (tests/unit/test_host_source_live.py,
tests/e2e/test_host_attachment.py::test_discard_frees_the_bytes). A killed source's threads may still finish what they
were in while the process dies: the successor is forked only after that (the pidfd tells of the last thread).
"""

from collections import deque
from typing import Any

from common import limits
from host.source.core import Job
from host.source.interface import Can, Geometry, Source
from tests.sim.processes import JOB
from tests.sim.world import World


class Disk:
    """The bytes of one export: what a crash of the host would leave (`durable`), and what a reader sees."""

    def __init__(self, world: World, size_bytes: int) -> None:
        self.world = world
        self.bytes = bytearray(size_bytes)
        self.durable = bytes(size_bytes)
        # A disk that is slow at times: what was begun before a fault may land long after it.
        self.slow_share, self.slow_s = world.random.choice(((0.03, 20e-3), (0.2, 0.2), (0.1, 0.6)))

    def longest_s(self, job: Job) -> float:
        """It takes no longer."""
        return self.slow_s if self.world.random.random() < self.slow_share else 1e-3


class _NoMoreWork(BaseException):
    """Ends the loop of a worker after one job."""


class SimSource(Source):
    """host.source.file.FileSource, opened by the name of its disk."""

    disks: dict[str, Disk] = {}

    def __init__(self, name: str, read_only: bool) -> None:
        self.disk, self.identity = SimSource.disks[name], f"disk {name}"
        self.geometry = Geometry(len(self.disk.bytes))
        self.can = Can(0) if read_only else Can.WRITE | Can.DISCARD | Can.WRITE_ZEROES

    def close(self) -> None: ...

    def _read(self, offset: int, into: memoryview) -> None:
        self._count("READ")
        into[:] = self.disk.bytes[offset : offset + len(into)]

    def _write(self, offset: int, data: memoryview) -> None:
        self._count("WRITE")
        self.disk.bytes[offset : offset + len(data)] = data

    def _flush(self) -> None:
        self._count("FLUSH")
        self.disk.durable = bytes(self.disk.bytes)

    def _discard(self, offset: int, size_bytes: int) -> None:
        self._count("DISCARD")
        self.disk.bytes[offset : offset + size_bytes] = bytes(size_bytes)

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        self._count("WRITE_ZEROES")
        self.disk.bytes[offset : offset + size_bytes] = bytes(size_bytes)

    def _count(self, what: str) -> None:
        self.disk.world.counts[f"source {what}"] += 1


class SimLatch:
    """host.source.latch.Latch: no disk of the simulator fails yet."""

    reason: str | None = None

    @staticmethod
    def of(runtime: Any, export_id: int) -> "SimLatch":
        return SimLatch()

    def set(self, reason: str) -> None:
        raise AssertionError(reason)


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
        self._next = job
        before, world.current = world.current, process
        try:
            self.work()
        except _NoMoreWork:
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
