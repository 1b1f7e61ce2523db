"""Every cut of a recording, and what must be on the disk after it. Pure: a recording and promises in, faults out.

After a cut the disk has each write that had ended before an fdatasync began which has ended. Any other write may be
there whole, in part (by sectors) or not at all. One outcome is the worst (none of them is), others are drawn.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SECTOR = 512
OUTCOMES = 4  # drawn for each cut, besides the worst


@dataclass(frozen=True)
class Entry:
    """A line of the recording. `number` is of one process."""

    pid: int
    do: str  # write, written, sync, synced
    number: int
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class Promise:
    """From recording position `since` on, the disk has `version` of the block at `offset`, or a later one."""

    since: int
    offset: int
    version: int


def stamp(version: int, size: int) -> bytes:
    """A block's content of this version: every sector tells it."""
    return (version.to_bytes(8, "little") + bytes(SECTOR - 8)) * (size // SECTOR)


def versions(block: bytes) -> list[int]:
    return [int.from_bytes(block[at : at + 8], "little") for at in range(0, len(block), SECTOR)]


def broken(recording: Sequence[Entry], promises: Sequence[Promise], size: int, block: int, seed: int) -> Iterator[str]:
    """Each promise that some cut breaks, as a sentence. `block`: bytes of a block of the promises."""
    draw = random.Random(seed)
    made = sorted(promises, key=lambda promise: promise.since)
    due: dict[int, int] = {}  # by offset, the newest version that was promised
    for cut in range(len(recording) + 1):
        while made and made[0].since <= cut:
            promise = made.pop(0)
            due[promise.offset] = max(promise.version, due.get(promise.offset, 0))
        for outcome in range(1 + OUTCOMES if due else 0):
            disk = after(recording[:cut], size, draw if outcome else None)
            for offset, version in due.items():
                found = min(versions(bytes(disk[offset : offset + block])))
                if found < version:
                    yield f"cut {cut}, outcome {outcome}: version {found} at {offset}, not {version}"


def after(recording: Sequence[Entry], size: int, draw: random.Random | None) -> bytearray:
    """The disk after a cut at the end of `recording`. Without `draw` nothing is there that need not be."""
    sure = _covered(recording)
    disk = bytearray(size)
    for entry in recording:
        if entry.do != "write":
            continue
        for at in range(0, len(entry.data), SECTOR):
            if (entry.pid, entry.number) in sure or (draw is not None and draw.random() < 0.5):
                disk[entry.offset + at : entry.offset + at + SECTOR] = entry.data[at : at + SECTOR]
    return disk


def _covered(recording: Sequence[Entry]) -> set[tuple[int, int]]:
    ended: set[tuple[int, int]] = set()
    covers: dict[tuple[int, int], frozenset[tuple[int, int]]] = {}
    covered: set[tuple[int, int]] = set()
    for entry in recording:
        key = (entry.pid, entry.number)
        if entry.do == "written":
            ended.add(key)
        elif entry.do == "sync":
            covers[key] = frozenset(ended)
        elif entry.do == "synced":
            covered |= covers[key]
    return covered
