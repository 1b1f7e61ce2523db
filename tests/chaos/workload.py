"""A workload that knows what every block must hold: address, version and seed in each, read back and judged.

Workers in threads read, write, write through (O_DSYNC) and sync a block device with O_DIRECT, never two of them on the
same blocks at a time; so a read must give exactly what the last completed write of each block left. An error of the
device, or any other content, is a violation, told with the block and what was found in it.
"""

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

BLOCK: Final = 4096  # bytes
_CELL: Final = struct.Struct("<8sQQQ")  # magic, block, version, seed: repeated to fill the block
_MOST: Final = 16  # blocks of one request


class Violation(Exception):
    """The device told an error, or gave bytes that nobody wrote last."""


class Disk(Protocol):
    """A block device that one worker has open. Counts of bytes are returned, errors are OSError."""

    def read(self, into: memoryview, offset: int) -> int: ...
    def write(self, data: memoryview, offset: int, through: bool) -> int: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class BlockDevice:
    """A Disk by its node, with O_DIRECT, and O_DSYNC for what goes through."""

    def __init__(self, device: Path) -> None:
        self._plain = os.open(device, os.O_RDWR | os.O_DIRECT)
        self._through = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_DSYNC)

    def read(self, into: memoryview, offset: int) -> int:
        return os.preadv(self._plain, [into], offset)

    def write(self, data: memoryview, offset: int, through: bool) -> int:
        return os.pwritev(self._through if through else self._plain, [data], offset)

    def sync(self) -> None:
        os.fsync(self._plain)

    def close(self) -> None:
        os.close(self._plain)
        os.close(self._through)


class Load(Protocol):
    """What uses a disk while faults strike. `completed` counts its requests."""

    completed: int
    bytes_checked: int
    violation: Violation | None

    def begin_gap(self) -> None: ...
    def pause(self) -> float: ...
    def in_flight(self) -> int: ...
    def stop(self, limit_s: float) -> None: ...
    def judge_file(self, file: Path) -> int: ...


class Workload:
    """`workers` threads on `device`, which begins as zeroes. `completed` counts requests."""

    def __init__(
        self, device: Path, blocks: int, seed: int, workers: int, opened: Callable[[Path], Disk] = BlockDevice
    ) -> None:
        self.device, self.seed, self._opened = device, seed, opened
        self._versions = [0] * blocks  # of the last completed write; 0: zeroes
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.violation: Violation | None = None
        self.completed = 0
        self.bytes_checked = 0
        self.last = time.monotonic()  # of the last completion
        self.gap = 0.0  # longest since `begin_gap`
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    # -- for the one who strikes -----------------------------------------------------------------------------------
    def begin_gap(self) -> None:
        """From now on, the longest pause between two completions (of any worker)."""
        with self._lock:
            self.gap = 0.0

    def pause(self) -> float:
        """The longest so far, one that has not ended included."""
        with self._lock:
            return max(self.gap, time.monotonic() - self.last)

    def in_flight(self) -> int:
        return len(self._busy)

    def stop(self, limit_s: float) -> None:
        """Every request ends, within the limit. Raises what was found wrong."""
        self._stopping.set()
        end = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        if self.violation is None and any(thread.is_alive() for thread in self._threads):
            self.violation = Violation(f"{self.device}: requests did not end within {limit_s:g} s")
        if self.violation is not None:
            raise self.violation

    def judge_file(self, file: Path) -> int:
        """After `stop`: is the host's file what was written? Returns bytes judged."""
        with file.open("rb") as source:
            for block, version in enumerate(self._versions):
                if source.read(BLOCK) != self._content(block, version):
                    raise Violation(f"{file}: block {block} is not version {version} that was acknowledged last")
        return len(self._versions) * BLOCK

    # -- a worker --------------------------------------------------------------------------------------------------
    def _work(self, number: int) -> None:
        choose = random.Random(self.seed * 1000 + number)
        disk, memory = self._opened(self.device), mmap.mmap(-1, _MOST * BLOCK)
        try:
            while not self._stopping.is_set() and self.violation is None:
                self._one(choose, disk, memory)
        except OSError as error:
            self.violation = Violation(f"{self.device}: {error}")
        except Violation as error:
            self.violation = error
        finally:
            disk.close()

    def _one(self, choose: random.Random, disk: Disk, memory: mmap.mmap) -> None:
        blocks = self._take(choose)
        try:
            kind = choose.random()
            if kind < 0.05:
                disk.sync()
            elif kind < 0.5:
                self._read(disk, blocks, memory)
            else:
                self._write(disk, blocks, memory, through=kind > 0.9)
        finally:
            with self._lock:
                self._busy.difference_update(blocks)
        with self._lock:
            now = time.monotonic()
            self.gap = max(self.gap, now - self.last)
            self.last, self.completed = now, self.completed + 1

    def _take(self, choose: random.Random) -> range:
        while True:
            count = choose.randint(1, _MOST)
            start = choose.randrange(len(self._versions) - count + 1)
            blocks = range(start, start + count)
            with self._lock:
                if self._busy.isdisjoint(blocks):
                    self._busy.update(blocks)
                    return blocks

    def _write(self, disk: Disk, blocks: range, memory: mmap.mmap, through: bool) -> None:
        version = {block: self._versions[block] + 1 for block in blocks}
        memory[: len(blocks) * BLOCK] = b"".join(self._content(block, version[block]) for block in blocks)
        done = disk.write(memoryview(memory)[: len(blocks) * BLOCK], blocks.start * BLOCK, through)
        if done != len(blocks) * BLOCK:
            raise Violation(f"{self.device}: {done} bytes of {len(blocks) * BLOCK} were written")
        for block in blocks:
            self._versions[block] = version[block]

    def _read(self, disk: Disk, blocks: range, memory: mmap.mmap) -> None:
        memory[: len(blocks) * BLOCK] = b"\xee" * (len(blocks) * BLOCK)
        done = disk.read(memoryview(memory)[: len(blocks) * BLOCK], blocks.start * BLOCK)
        if done != len(blocks) * BLOCK:
            raise Violation(f"{self.device}: {done} bytes of {len(blocks) * BLOCK} were read")
        for index, block in enumerate(blocks):
            found, version = memory[index * BLOCK : (index + 1) * BLOCK], self._versions[block]
            if found != self._content(block, version):
                raise Violation(f"{self.device}: block {block} should be version {version}: {told(found)}")
        self.bytes_checked += done

    def _content(self, block: int, version: int) -> bytes:
        if version == 0:
            return bytes(BLOCK)
        return _CELL.pack(b"replug\0\0", block, version, self.seed) * (BLOCK // _CELL.size)


def told(found: bytes) -> str:
    """What a block that is wrong holds instead, as far as it can be told."""
    cells = {found[start : start + _CELL.size] for start in range(0, len(found), _CELL.size)}
    parts = []
    for cell in sorted(cells)[:4]:
        magic, block, version, seed = _CELL.unpack(cell)
        parts.append(f"block {block} version {version} seed {seed}" if magic == b"replug\0\0" else cell[:16].hex())
    return f"it holds {'; '.join(parts)}{' and more' if len(cells) > 4 else ''}"
