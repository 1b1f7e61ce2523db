"""A power cut of the host at every point: after each acknowledged FLUSH or FUA write, what it covers is on the disk.

The real source role in a process of its own, writes and FLUSHes over its real lane, a recorder beneath the file. With
the fdatasync taken out, or answered too early, the same must fail: it is run so, and has to.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.wire import Op
from common.wire_v1 import RequestFlag
from tests.power.recorder import TOO_EARLY, WITHOUT_FDATASYNC
from tests.power.replay import Entry, Promise, after, broken, stamp
from tests.unit.test_host_source_live import BLOCK, SIZE, Bench, Usb

BLOCKS = SIZE // BLOCK
ROUNDS = 20


class Writer:
    """A workload that keeps several writes in flight, never two to one block, and notes what it was promised."""

    def __init__(self, usb: Usb, recording: Path, seed: int) -> None:
        self.usb, self.recording, self.random = usb, recording, random.Random(seed)
        self.sequence = 0
        self.version = [0] * BLOCKS  # what was asked last
        self.acknowledged = [0] * BLOCKS
        self.promises: list[Promise] = []

    def position(self) -> int:
        """How much is recorded: everything that happened before now is in it."""
        return self.recording.read_bytes().count(b"\n") if self.recording.exists() else 0

    def ask(self, op: Op, block: int = 0, blocks: int = 1, flags: int = 0) -> int:
        self.sequence += 1
        slot = self.sequence % 200 * BLOCK
        if op is Op.WRITE:
            self.version[block] += 1
            self.usb.arena.memory[slot : slot + BLOCK] = stamp(self.version[block], BLOCK)
        self.usb.ask([self.sequence, int(op), slot, block, 0 if op is Op.FLUSH else blocks, flags])
        return self.sequence

    def turn(self) -> None:
        """Some writes, some of them FUA; then perhaps a FLUSH, sent while others are still in flight."""
        blocks = self.random.sample(range(BLOCKS), 6)
        first = {self.ask(Op.WRITE, n, flags=self._maybe_fua()): n for n in blocks[:4]}
        self._await(first)
        late = {self.ask(Op.WRITE, n): n for n in blocks[4:]}
        if self.random.random() < 0.6:
            covered = list(self.acknowledged)  # acknowledged before the FLUSH is sent: that is what it covers
            flush = self.ask(Op.FLUSH)
            self.usb.until(lambda: flush in self.usb.completed, "the FLUSH")
            since = self.position()
            self.promises += [Promise(since, n * BLOCK, version) for n, version in enumerate(covered) if version]
        self._await(late)

    def _maybe_fua(self) -> int:
        return int(RequestFlag.FUA) if self.random.random() < 0.2 else 0

    def _await(self, asked: dict[int, int]) -> None:
        self.usb.until(lambda: asked.keys() <= self.usb.completed.keys(), "writes")
        for sequence, block in asked.items():
            assert self.usb.completed[sequence] == 0
            self.acknowledged[block] = self.version[block]

    def fua(self, block: int) -> None:
        """One write with FUA: its acknowledgement alone is the promise."""
        self._await({self.ask(Op.WRITE, block, flags=int(RequestFlag.FUA)): block})
        self.promises.append(Promise(self.position(), block * BLOCK, self.version[block]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.image.write_bytes(bytes(SIZE))
    yield bench
    for process in bench.processes:
        process.kill()
        process.wait()


@pytest.fixture
def usb(bench: Bench) -> Iterator[Usb]:
    usb = Usb(bench.runtime)
    yield usb
    usb.die()


def start(bench: Bench, usb: Usb, fault: str = "") -> None:
    known = len(usb.hellos)
    path = bench.base / "recording"
    bench.start_source(f"from tests.power.recorder import record; record({str(path)!r}, {fault!r})\n")
    usb.until(lambda: len(usb.hellos) > known, "HELLO")


def recorded(bench: Bench) -> list[Entry]:
    """A line that a kill has cut short (the kernel looks at each page) is of something that did not begin: left out."""
    begun = (bench.base / "recording").read_text().split('{"pid"')[1:]
    fields = [json.loads('{"pid"' + line) for line in begun if line.endswith("\n")]
    return [Entry(**{**f, "data": bytes.fromhex(f.get("data", ""))}) for f in fields]


def run(bench: Bench, usb: Usb, seed: int, fault: str = "", rounds: int = ROUNDS, kills: bool = False) -> list[str]:
    """A workload, and the first promises that a cut of its recording breaks."""
    start(bench, usb, fault)
    writer = Writer(usb, bench.base / "recording", seed)
    for turn in range(rounds):
        writer.turn()
        writer.fua(turn % BLOCKS)
        if kills and turn % 10 == 9:
            # In the middle of writes that nobody will answer: usb says them again to the successor.
            asked = {writer.ask(Op.WRITE, n): n for n in range(8)}
            bench.processes[-1].kill()
            bench.processes[-1].wait()
            start(bench, usb, fault)
            unanswered = [s for s in asked if s not in usb.completed]
            slots = [[s, int(Op.WRITE), s % 200 * BLOCK, asked[s], 1, 0] for s in unanswered]
            if slots:
                usb.ask(*slots)
            writer._await(asked)
    recording = recorded(bench)
    assert len(writer.promises) > rounds, "a workload without FLUSHes shows nothing"
    assert sum(e.do == "write" for e in recording) >= 7 * rounds, "writes did not come through the recorder"
    faults = broken(recording, writer.promises, SIZE, BLOCK, seed)
    return [fault for _, fault in zip(range(3), faults, strict=False)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
def test_after_each_acknowledged_flush_its_data_survives_a_power_cut_at_any_point(
    bench: Bench, usb: Usb, seed: int
) -> None:
    assert run(bench, usb, seed) == []


@pytest.mark.timeout(120)
def test_so_it_does_when_the_source_is_killed_in_the_middle_of_writes(bench: Bench, usb: Usb) -> None:
    assert run(bench, usb, 3, kills=True) == []


@pytest.mark.parametrize("fault", [WITHOUT_FDATASYNC, TOO_EARLY])
def test_the_test_fails_for_a_source(bench: Bench, usb: Usb, fault: str) -> None:
    assert run(bench, usb, 1, fault, rounds=5) != []


# -- the model itself ------------------------------------------------------------------------------------------------
def written(number: int, version: int) -> list[Entry]:
    return [Entry(1, "write", number, 0, stamp(version, BLOCK)), Entry(1, "written", number)]


def test_a_sync_covers_the_writes_that_ended_before_it_began_and_no_other() -> None:
    sync = [Entry(1, "sync", 9), *written(2, 2), Entry(1, "synced", 9)]
    recording = [*written(1, 1), *sync]
    assert after(recording, BLOCK, None) == stamp(1, BLOCK)
    assert after(recording[:-1], BLOCK, None) == bytes(BLOCK), "it has not ended"


def test_a_write_that_is_not_sure_may_be_there_in_part() -> None:
    outcomes = {bytes(after(written(1, 1), BLOCK, random.Random(seed))) for seed in range(20)}
    assert len(outcomes) > 10 and all(set(o) <= {0, 1} for o in outcomes)
