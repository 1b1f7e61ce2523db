"""A power cut of the host at every point, on the real kernels (issue 4, what it must show).

Writes, FUA writes and fsyncs on the gadget's /dev/ublkbN; the host serves a block device that records beneath its page
cache (tests.power.nbd); every cut of the recording is judged (tests.power.replay). With fdatasync taken out of the
host's processes the same must fail: it is run so, and has to. The NBD how-to is tried by it, too.
"""

import fcntl
import mmap
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bus.runtime import Side
from tests.e2e.hostile import dice
from tests.power.nbd import RecordingDisk
from tests.power.replay import Promise, broken, stamp
from tools.demo import inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
BLOCK, BLOCKS, ROUNDS = 4096, 32, 8
DISCARDED = range(BLOCKS, BLOCKS + 16)  # nothing is promised of these
BLKDISCARD = 0x1277  # linux/fs.h: u64[2], start and length
WITHOUT_FDATASYNC = Path(__file__).parents[1] / "power" / "without_fdatasync"


@pytest.fixture(scope="module")
def gadget() -> Iterator[None]:
    up = inside.replug("gadget", "up")
    assert up.returncode == 0, up.stderr
    yield
    inside.replug("gadget", "down", "--force")
    inside._see_nothing_left()


@pytest.fixture
def disk(gadget: None) -> Iterator[RecordingDisk]:
    disk = RecordingDisk((DISCARDED.stop) * BLOCK)
    yield disk
    inside.replug("host", "down")
    disk.close()


def serve(disk: RecordingDisk, pythonpath: str = "") -> str:
    command = [*inside.REPLUG, "host", "serve", "--background", f"board1={disk.device}"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": pythonpath}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return str(inside.wait_for("the device to be live", live, interval_s=0.5))


def live() -> str:
    exports = [e for e in inside.status(Side.GADGET)["exports"] if e["state"] == "live"]
    return next((e["device"] for e in exports if Path(e["device"]).exists()), "")


class Writer:
    """Keeps several writes in flight, never two to one block, and notes what it was promised."""

    def __init__(self, device: str, disk: RecordingDisk, rng: random.Random) -> None:
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self.disk, self.random = disk, rng
        self.version, self.acknowledged = [0] * BLOCKS, [0] * BLOCKS
        self.promises: list[Promise] = []
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        os.close(self.fd)

    def turn(self) -> None:
        """Some writes; then an fsync while others are in flight, a FUA write, and something that is no write."""
        blocks = self.random.sample(range(BLOCKS), 7)
        for done in [self._begin(block) for block in blocks[:4]]:
            done.result()
        late = [self._begin(block) for block in blocks[4:6]]
        covered = list(self.acknowledged)  # what was acknowledged before the FLUSH is sent: that is what it covers
        os.fsync(self.fd)
        since = len(self.disk.entries)
        self.promises += [Promise(since, n * BLOCK, version) for n, version in enumerate(covered) if version]
        for done in late:
            done.result()
        fua = blocks[6]
        self._write(fua, self._next(fua), os.RWF_DSYNC)
        self.promises.append(Promise(len(self.disk.entries), fua * BLOCK, self.version[fua]))
        at = self.random.choice(DISCARDED)
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", at * BLOCK, BLOCK))

    def _next(self, block: int) -> int:
        self.version[block] += 1
        return self.version[block]

    def _begin(self, block: int) -> "Future[None]":
        return self._pool.submit(self._write, block, self._next(block))

    def _write(self, block: int, version: int, flags: int = 0) -> None:
        with mmap.mmap(-1, BLOCK) as buffer:
            buffer[:] = stamp(version, BLOCK)
            assert os.pwritev(self.fd, [buffer], block * BLOCK, flags) == BLOCK
        self.acknowledged[block] = version


def run(disk: RecordingDisk, device: str, name: str) -> list[str]:
    """A workload, and the first promises that a cut of its recording breaks."""
    with Writer(device, disk, dice(name)) as writer:
        for _ in range(ROUNDS):
            writer.turn()
    assert not disk.fault
    assert len(writer.promises) > 10 * ROUNDS, "a workload without FLUSHes shows nothing"
    print(f"{len(disk.entries)} entries recorded, {len(writer.promises)} promises")
    faults = broken(disk.entries, writer.promises, len(disk.memory), BLOCK, seed=1)
    return [fault for _, fault in zip(range(3), faults, strict=False)]


def test_after_each_acknowledged_flush_its_data_is_there_whenever_the_hosts_power_is_cut(disk: RecordingDisk) -> None:
    assert run(disk, serve(disk), "power cut") == []
    assert sum(entry.do == "synced" for entry in disk.entries) >= ROUNDS
    assert sum(entry.do == "write" for entry in disk.entries) >= 5 * ROUNDS


def test_the_test_fails_for_a_host_without_fdatasync(disk: RecordingDisk) -> None:
    assert run(disk, serve(disk, str(WITHOUT_FDATASYNC)), "power cut") != []
