"""What reads may return: the history of each block, and the judgement on it.

Every block carries its export, its address and the version of the write that wrote it. A read that began at b and
ended at e may return version v if the write of v began before e, and no other write of this block began after v's had
ended and ended before b. (Concurrent writes: any, or the old one; a completed write is the floor.) Version 0 is zeros:
what a disk begins with, and what a DISCARD writes; each DISCARD is an interval of its own. When a FLUSH has ended, what
a crash of the host would leave is judged as a read that began when the FLUSH did. When a FUA write has ended, what a
crash would leave of its blocks may be that write, or one that was not over when it began: of writes that are not FUA
and ended meanwhile nothing is promised. Of a write that failed, as its disk did, each block may be new or old: it is no
floor for others.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from tests.sim.world import START, World

BLOCK = 512
_HEAD = struct.Struct("<4sIQQ")


def content(export_id: int, lba: int, version: int) -> bytes:
    if version == 0:
        return bytes(BLOCK)
    head = _HEAD.pack(b"SIM!", export_id, lba, version)
    return (head * (BLOCK // len(head) + 1))[:BLOCK]


@dataclass
class Written:
    version: int
    began: float
    ended: float = inf
    failed: bool = False


class Checker:
    """Histories of all blocks. Violations go to the world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._history: dict[tuple[int, int], list[Written]] = {}
        self._next = 0
        self.reads = 0

    def _of(self, export_id: int, lba: int) -> list[Written]:
        return self._history.setdefault((export_id, lba), [Written(0, -inf, -inf)])

    def new_version(self) -> int:
        self._next += 1
        return self._next

    def write_begins(self, export_id: int, lba: int, version: int) -> Written:
        written = Written(version, self._world.now)
        self._of(export_id, lba).append(written)
        return written

    def read_ended(self, export_id: int, lba: int, began: float, data: bytes, what: str = "a read") -> None:
        history = self._of(export_id, lba)
        what = f"{what} begun at {began - START:.6f}"
        self._judge(export_id, lba, data, what, lambda w: self._allowed(w, history, began))

    def fua_ended(self, export_id: int, lba: int, fua: Written, durable: bytes) -> None:
        what = f"what a crash leaves after the FUA write of version {fua.version}"
        self._judge(export_id, lba, durable, what, lambda w: w is fua or w.ended >= fua.began)

    def _judge(self, export_id: int, lba: int, data: bytes, what: str, allowed: Callable[[Written], bool]) -> None:
        self.reads += 1
        version = self._version(export_id, lba, data)
        if version is None:
            return
        history = self._of(export_id, lba)
        if any(w.version == version and allowed(w) for w in history):
            self._forget(history)
            return
        known = ", ".join(f"{w.version} [{w.began - START:.6f}, {w.ended - START:.6f}]" for w in history[-6:])
        self._world.violate(f"export {export_id} block {lba}: {what} gave version {version}; writes: {known}")

    def _version(self, export_id: int, lba: int, data: bytes) -> int | None:
        if data == bytes(BLOCK):
            return 0
        magic, found_export, found_lba, version = _HEAD.unpack_from(data)
        if data != content(export_id, lba, version) or magic != b"SIM!":
            self._world.violate(
                f"export {export_id} block {lba}: not its bytes: {magic!r} of export {found_export} block {found_lba} "
                f"version {version}"
            )
            return None
        return int(version)

    @staticmethod
    def _allowed(candidate: Written, history: list[Written], began: float) -> bool:
        return not any(w.began > candidate.ended and w.ended < began and not w.failed for w in history)

    def _forget(self, history: list[Written]) -> None:
        """Drop what no later read may return: what ended before the begin of a write that has ended long ago."""
        if len(history) > 32:
            floor = max((w.began for w in history if w.ended < self._world.now - 100 and not w.failed), default=-inf)
            history[:] = [w for w in history if w.ended >= floor]
