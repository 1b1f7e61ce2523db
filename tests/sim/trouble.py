"""What is wrong with a disk, now and for good, and what it has told: no I/O may fail but for that.

Copies, as tests/e2e/test_source_errors.py shows them on real files: pread and pwrite that move less than was asked, or
fail with EIO or ENOSPC, perhaps after a part was done; fallocate that fails without a trace; fdatasync that fails once,
and after it the pages are clean, though they never came to the disk (host.source.latch). One thing it does not do: fail
the fdatasync of a process that is dying in it. The kernel then tells nobody, and the successor's fdatasync succeeds.
"""

import errno
from dataclasses import dataclass
from math import inf

from common.wire import Op
from tests.sim.checker import BLOCK
from tests.sim.world import World

LATCHED = (Op.WRITE, Op.WRITE_ZEROES, Op.DISCARD, Op.FLUSH)  # they are EIO after an fdatasync has failed


@dataclass(frozen=True)
class Told:
    """`error` for bytes from `first` to `end`. A read or write may have done a part of its work before."""

    op: Op
    first: int
    end: int
    error: int
    at: float


@dataclass
class Failing:
    """Operations of these kinds fail: `times` more, until `until`."""

    ops: tuple[Op, ...]
    error: int
    times: float = inf
    until: float = inf


class Trouble:
    """Of one disk. It fails as it was asked to, keeps what it has told, and knows which blocks are not written back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._failing: list[Failing] = []
        self._short = 0  # so many more reads and writes move less than was asked
        self.told: list[Told] = []
        self.dirty: set[int] = set()
        self.lost_at: float | None = None  # when the first fdatasync failed

    def fails(self, failing: Failing) -> None:
        self._failing.append(failing)

    def falls_short(self, times: int) -> None:
        self._short = times

    def heals(self) -> None:
        """But for what is lost."""
        self._failing.clear()
        self._short = 0

    # -- for the disk ------------------------------------------------------------------------------------------------
    def moves(self, op: Op, offset: int, size_bytes: int) -> int:
        """How much a read or write moves: less, if it falls short, or if the rest of it fails."""
        random = self._world.random
        if self._fails(op) is not None:
            if size_bytes > BLOCK and random.random() < 0.5:
                return random.randrange(1, size_bytes // BLOCK) * BLOCK
            self.strike(op, offset, size_bytes)
        if self._short and size_bytes > 1:
            self._short -= 1
            self._world.counts[f"source short {op.name}"] += 1
            return random.randrange(1, size_bytes)
        return size_bytes

    def strike(self, op: Op, offset: int, size_bytes: int) -> None:
        """Raises OSError if it is to fail."""
        failing = self._fails(op)
        if failing is None:
            return
        failing.times -= 1
        self.told.append(Told(op, offset, offset + size_bytes, failing.error, self._world.now))
        self._world.say(f"disk: {op.name} of {size_bytes} at {offset} fails with {failing.error}")
        self._world.counts[f"source failed {op.name} {errno.errorcode[failing.error]}"] += 1
        if op is Op.FLUSH:
            self.dirty.clear()
            self.lost_at = self._world.now if self.lost_at is None else self.lost_at
        raise OSError(failing.error, "the disk fails")

    def _fails(self, op: Op) -> Failing | None:
        now = self._world.now
        return next((f for f in self._failing if op in f.ops and f.times > 0 and now < f.until), None)

    # -- for the checker ---------------------------------------------------------------------------------------------
    def may_fail(self, op: Op, fua: bool, first: int, end: int, error: int, began: float) -> bool:
        """Did the disk tell this errno of that very range since then; or did an fdatasync fail before?"""
        if self.lost_at is not None and op in LATCHED and error == errno.EIO:
            return True
        told = [t for t in self.told if t.at >= began and t.error == error]
        if op is Op.FLUSH or (fua and any(t.op is Op.FLUSH for t in told)):
            return any(t.op is Op.FLUSH for t in told)
        return any(t.op is op and t.end == end and first <= t.first for t in told)

    def must_fail(self, op: Op, began: float) -> bool:
        """After a failed fdatasync was told nothing may be promised any more."""
        return op in LATCHED and self.lost_at is not None and self.lost_at < began
