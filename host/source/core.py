"""What a source decides: which requests may run now, and which completions somebody still waits for. No I/O, no files.

usb's generations are a fence: a write of a dead usb's link that still runs in a thread could land after a newer one
was acknowledged, so nothing of a new generation starts before everything older has ended. Called by host/source/role.py
and the simulator.
"""

from collections import deque
from dataclasses import dataclass
from errno import EINVAL, EIO

from common.errors import WireError
from common.wire import OPS, ExportRecord, Op, out_of_bounds
from common.wire_v1 import RequestFlag


@dataclass(slots=True)
class Job:
    """One file operation. `generation` names whose arena `arena_offset` lies in."""

    generation: int
    sequence: int
    op: Op
    arena_offset: int
    file_offset: int
    size_bytes: int
    fua: bool = False  # a write that is on stable storage before it is answered
    unmap: bool = False  # zeroes that may give the space back


@dataclass(slots=True)
class Complete:
    """Tell usb that `sequence` ended with `status` (0 or errno)."""

    sequence: int
    status: int


@dataclass(frozen=True, slots=True)
class Unmap:
    """Nothing refers to the arena of this generation any more."""

    generation: int


Action = Job | Complete | Unmap


class SourceCore:
    """Dispatch and fence of one source."""

    def __init__(self, record: ExportRecord) -> None:
        self._record = record
        self._generation: int | None = None
        self._arena_bytes = 0
        self._running: set[tuple[int, int]] = set()  # (generation, sequence)
        self._waiting: deque[Job] = deque()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def peer(self, generation: int) -> list[Action]:
        """A new usb is there: what of an older one has not started is void, and nobody waits for what has."""
        old, self._generation, self._arena_bytes = self._generation, generation, 0
        self._waiting.clear()
        if old is not None and old != generation and not self._of(old):
            return [Unmap(old)]
        return []

    def arena(self, generation: int, size_bytes: int) -> None:
        """The arena that usb has named is mapped. WireError if it is not the present usb's."""
        if generation != self._generation:
            raise WireError(f"an arena of generation {generation}, but usb is {self._generation}")
        self._arena_bytes = size_bytes

    def requests(self, body: object) -> list[Action]:
        """REQUESTS of the present usb: list of [sequence, op, arena offset, lba, blocks, flags]."""
        generation = self._generation
        if generation is None or not self._arena_bytes:
            raise WireError("REQUESTS before the arena was named")
        if not isinstance(body, list):
            raise WireError("REQUESTS is not a list")
        actions: list[Action] = []
        waiting = {job.sequence for job in self._waiting}
        for job, item in [(self._job(generation, item), item) for item in body]:  # all are parsed before any is taken
            if (generation, job.sequence) in self._running or job.sequence in waiting:
                continue  # said twice: it is being done
            if self._sane(job, item):
                waiting.add(job.sequence)
                self._waiting.append(job)
            else:
                actions.append(Complete(job.sequence, EINVAL))
        return actions + self._start()

    def _job(self, generation: int, item: object) -> Job:
        if (
            not isinstance(item, list)
            or len(item) != 6
            or any(n < 0 if type(n) is int else not _is_natural(n) for n in item)
        ):
            raise WireError(f"request {item!r} is not six numbers")
        sequence, code, arena_offset, lba, blocks, flags = item
        op = OPS.get(code)
        if op is None:
            raise WireError(f"request {item!r}: unknown op")
        size = self._record.block_size
        fua = op is Op.WRITE and bool(flags & RequestFlag.FUA)
        unmap = op is Op.WRITE_ZEROES and not flags & RequestFlag.NO_UNMAP
        return Job(generation, sequence, op, arena_offset, lba * size, blocks * size, fua, unmap)

    def _sane(self, job: Job, item: list[int]) -> bool:
        if out_of_bounds(job.op, item[3], item[4], self._record, self._arena_bytes) is not None:
            return False
        return job.op > Op.WRITE or job.arena_offset + job.size_bytes <= self._arena_bytes

    def _start(self) -> list[Action]:
        if not self._waiting or any(generation != self._generation for generation, _ in self._running):
            return []
        jobs: list[Action] = list(self._waiting)
        self._running |= {(job.generation, job.sequence) for job in self._waiting}
        self._waiting.clear()
        return jobs

    def finished(self, job: Job, status: int) -> list[Action]:
        """A job has ended, done or failed. `status` is an errno; what does not fit the wire's byte is EIO."""
        self._running.discard((job.generation, job.sequence))
        if job.generation == self._generation:
            done = Complete(job.sequence, status if 0 <= status < 256 else EIO)
            return [done, *self._start()] if self._waiting else [done]
        if self._of(job.generation):
            return []
        return [Unmap(job.generation), *self._start()]

    def _of(self, generation: int) -> bool:
        return any(g == generation for g, _ in self._running)


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
