"""A hostile gadget against the host on the real kernel (issue 4, what it must show): Requests, frames, ep0, floods.

Seeded: REPLUG_SEED runs another one.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bus.control import ask
from bus.runtime import Runtime, Side
from common import limits
from common.errors import WireError
from common.wire import Control, Op, Request
from common.wire_v1 import HEAD_BYTES, ControlV1, Record
from tests.e2e.hostile import Watch, dice, hurt
from tests.e2e.hostile_gadget import HostileGadget
from tests.e2e.v0_gadget import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
BLOCK, SIZE = 4096, 4 << 20
BLOCKS = SIZE // BLOCK
HOST = Runtime(Side.HOST)
STRANGER = 0xBAD


@dataclass
class Bench:
    gadget: HostileGadget
    disk: Path
    rom: Path

    @property
    def ids(self) -> tuple[int, int]:
        """Export ids of the two."""
        return self.gadget.named("disk").record.export_id, self.gadget.named("rom").record.export_id

    def works(self) -> None:
        """Both exports, honestly: a write, a flush and a read, byte for byte."""
        disk, rom = self.ids
        data = os.urandom(8 * BLOCK)
        flush = (Record(Op.FLUSH, 0, 2, disk, 0, 0), b"")
        if self.gadget.version == 0:
            assert self.gadget.ask(Op.WRITE, 7, 8, data).status == 0
            assert self.gadget.ask(Op.READ, 7, 8).status == 0
            assert self.gadget.payload(8 * BLOCK) == data
            return
        assert self.gadget.ask_all((Record(Op.WRITE, 0, 1, disk, 7, 8), data))[1][0].mark == 0
        done = self.gadget.ask_all(
            flush, (Record(Op.READ, 0, 3, disk, 7, 8), b""), (Record(Op.READ, 0, 4, rom, 5, 4), b"")
        )
        assert [done[n][0].mark for n in (2, 3, 4)] == [0, 0, 0]
        assert done[3][1] == data == self.disk.read_bytes()[7 * BLOCK : 15 * BLOCK]
        assert done[4][1] == self.rom.read_bytes()[5 * BLOCK : 9 * BLOCK]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    work = tmp_path_factory.mktemp("host")
    disk, rom = work / "disk.img", work / "rom.img"
    for image in (disk, rom):
        image.write_bytes(os.urandom(SIZE))
    gadget = HostileGadget(work / "ffs")
    command = [sys.executable, "-m", "tools.cli", "host", "serve", str(disk), f"file:{rom}?ro"]
    with (work / "serve.log").open("w") as log:
        serve = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        gadget.wait_configured()
        yield Bench(gadget, disk, rom)
    finally:
        for role in ("usb", "session"):  # pytest shows them with a failure
            print(f"== {role}\n{HOST.log_path(role).read_text()[-9000:]}")
        serve.send_signal(signal.SIGINT)
        status = serve.wait(60)
        gadget.close()
    assert status == 0, (work / "serve.log").read_text()
    assert not HOST.root.exists()


@pytest.fixture
def bench(serving: Bench) -> Bench:
    """A gadget that has been honest so far in its plugging."""
    serving.gadget.lies.clear()
    serving.gadget.speak(1)
    serving.works()
    return serving


def hostile_requests(bench: Bench) -> list[tuple[Record, bytes, int]]:
    """Each with the errno that it must be refused with."""
    disk, rom = bench.ids
    rng, cases = dice("requests"), list[tuple[Record, bytes, int]]()

    def refused(number: int, op: Op, export: int, lba: int, blocks: int, flags: int = 0, payload: bytes = b"") -> None:
        cases.append((Record(op, flags, len(cases) + 100, export, lba, blocks), payload, number))

    for _ in range(5):
        past = rng.choice([BLOCKS, BLOCKS + rng.randrange(1 << 40), (1 << 64) - 1])
        refused(errno.EINVAL, rng.choice([Op.READ, Op.DISCARD, Op.WRITE_ZEROES]), disk, past, 1)
        refused(errno.EINVAL, Op.READ, disk, BLOCKS - 1, rng.randint(2, 1 << 32 - 1))
        refused(errno.EINVAL, Op.WRITE, disk, past, 2, payload=rng.randbytes(2 * BLOCK))
        refused(errno.EINVAL, Op.READ, disk, 0, limits.MAX_REQUEST_BYTES // BLOCK + 1)
        refused(errno.EINVAL, rng.choice([Op.READ, Op.WRITE, Op.DISCARD]), disk, rng.randrange(BLOCKS), 0)
        refused(errno.EINVAL, Op.READ, disk, 0, 1, flags=rng.randint(1, 255))
        refused(errno.EINVAL, Op.WRITE, disk, 0, 1, flags=rng.randint(2, 255), payload=bytes(BLOCK))
        refused(errno.EINVAL, rng.choice([Op.READ, Op.FLUSH, Op.DISCARD]), STRANGER + rng.randrange(99), 0, 1)
        refused(errno.EROFS, Op.WRITE, rom, rng.randrange(BLOCKS), 1, payload=rng.randbytes(BLOCK))
        refused(errno.EROFS, rng.choice([Op.DISCARD, Op.WRITE_ZEROES]), rom, 0, BLOCKS)
    return cases


def test_requests_that_may_not_be_are_each_told_their_errno_and_counted_and_reach_no_source(bench: Bench) -> None:
    cases, (disk, _) = hostile_requests(bench), bench.ids
    watch, began = Watch(HOST, "usb", "session"), time.monotonic()
    before, sources = (bench.disk.read_bytes(), bench.rom.read_bytes()), reached()
    honest = {n: (Record(Op.READ, 0, n, disk, n * 3, 3), b"") for n in range(20)}
    mixed = [(record, payload) for record, payload, _ in cases] + list(honest.values())
    dice("order").shuffle(mixed)
    done = bench.gadget.ask_all(*mixed)
    assert {record.request_id: done[record.request_id][0].mark for record, _, _ in cases} == {
        record.request_id: number for record, _, number in cases
    }
    for number in honest:
        assert done[number][1] == before[0][number * 3 * BLOCK : (number * 3 + 3) * BLOCK], "an honest read in between"
    assert (bench.disk.read_bytes(), bench.rom.read_bytes()) == before
    assert reached() - sources == Counter(read=len(honest))
    assert watch.refused() == {"usb request": len(cases)}
    assert len(watch.newly_logged(time.monotonic() - began)) > 0
    watch.unharmed()


def reached() -> Counter[str]:
    """What the sources were asked for."""
    counts: Counter[str] = Counter()
    for role in ("source.disk", "source.rom"):
        counts.update(ask(HOST, role, "status")["counts"])
    return counts


def test_fuzzed_frames_each_begin_a_new_epoch_and_no_process_dies(bench: Bench) -> None:
    rng, gadget, (disk, _) = dice("frames"), bench.gadget, bench.ids
    watch, rounds = Watch(HOST, "usb", "session"), 6
    for _ in range(rounds):
        before = gadget.configurations
        [frame] = gadget.frames((Record(Op.WRITE, 0, 9, disk, 0, 1), rng.randbytes(BLOCK)))
        gadget.write_frame(hurt(rng, frame, HEAD_BYTES))
        gadget.wait_configured(before)
        bench.works()
    assert watch.refused() == {"usb message": rounds}
    assert len(watch.newly_logged(0)) == rounds
    watch.unharmed()


@pytest.mark.parametrize(
    ("op", "export", "blocks", "count", "words"),
    [
        (Op.READ, "disk", 16, 600, "more than 128 requests in flight"),
        (Op.READ, "", 16, limits.MAX_UNWRITTEN + 1000, "Responses unread"),
    ],
    ids=["of good requests", "of refused ones"],
)
def test_a_flood_whose_answers_nobody_reads_is_ended_before_it_takes_memory(
    bench: Bench, op: Op, export: str, blocks: int, count: int, words: str
) -> None:
    gadget, watch, began = bench.gadget, Watch(HOST, "usb", "session"), time.monotonic()
    export_id, before = gadget.named(export).record.export_id if export else STRANGER, gadget.configurations
    gadget.flood(gadget.frames(*((Record(op, 0, 100 + n, export_id, 0, blocks), b"") for n in range(count))))
    gadget.wait_configured(before)
    assert watch.refused()["usb message"] >= 1
    assert any(words in line for line in watch.newly_logged(time.monotonic() - began))
    bench.works()
    watch.unharmed()


def test_v0_messages_that_cannot_be_each_cost_an_attachment_and_no_process_dies(bench: Bench) -> None:
    rng, gadget, (disk, _) = dice("messages"), bench.gadget, bench.ids
    gadget.speak(0)
    watch, rounds = Watch(HOST, "usb", "session"), 4
    for _ in range(rounds):
        before = gadget.configurations
        gadget.send_raw(nonsense(rng, disk))
        gadget.wait_configured(before)
        bench.works()
    assert watch.refused() == {"usb message": rounds}
    watch.unharmed()


def nonsense(rng: random.Random, export_id: int) -> bytes:
    while True:
        data = hurt(rng, Request(Op.READ, 1, export_id, 0, 1).encode())
        try:
            Request.decode(data)
        except WireError:
            return data


def test_a_v0_write_whose_payload_does_not_come_holds_up_no_read_and_no_other_export(bench: Bench) -> None:
    gadget, (disk, rom) = bench.gadget, bench.ids
    gadget.speak(0)
    watch, payload = Watch(HOST, "usb", "session"), os.urandom(BLOCK)
    gadget.send_raw(Request(Op.WRITE, 1, disk, 50, 1).encode())
    for number, (export, image) in enumerate(((disk, bench.disk), (rom, bench.rom)), start=2):
        gadget.send_raw(Request(Op.READ, number, export, 9, 2).encode())
        assert (gadget.response().request_id, gadget.payload(2 * BLOCK)) == (
            number,
            image.read_bytes()[9 * BLOCK : 11 * BLOCK],
        )
    os.write(gadget._payloads_in, payload)
    assert gadget.response().request_id == 1
    assert bench.disk.read_bytes()[50 * BLOCK : 51 * BLOCK] == payload
    assert watch.refused() == {}
    watch.unharmed()


@pytest.mark.parametrize(
    ("request_number", "version", "kind"),
    [(ControlV1.HELLO, 1, "usb message"), (Control.IDENT, 1, "session answer"), (Control.IDENT, 0, "session answer")],
    ids=["HELLO", "IDENT of v1", "IDENT of v0"],
)
def test_lies_in_the_hand_shake_are_each_counted_and_the_truth_is_served(
    bench: Bench, request_number: int, version: int, kind: str
) -> None:
    rng, gadget, watch = dice("hand-shake"), bench.gadget, Watch(HOST, "usb", "session")
    gadget.unplug()
    gadget.version, before, gadget.told = version, gadget.configurations, 0
    gadget.lies[int(request_number)] = lambda: (
        rng.choice([b"", b"SMOP", b"RPL1"]) + rng.randbytes(rng.choice([0, 1, 3, 5, 9]))  # never what is right
    )
    gadget.plug()
    until(lambda: gadget.told >= 4, "four lies to be told")
    gadget.lies.clear()
    gadget.wait_configured(before)
    assert watch.refused() == {kind: gadget.told}
    bench.works()
    watch.unharmed()


def test_answers_to_status_that_make_no_sense_are_misses_and_end_in_a_new_hand_shake(bench: Bench) -> None:
    rng, gadget, watch = dice("status"), bench.gadget, Watch(HOST, "usb", "session")
    before, gadget.told = gadget.configurations, 0
    gadget.lies[int(Control.STATUS)] = lambda: b"\xff" + rng.randbytes(rng.randrange(15))
    until(lambda: gadget.told >= limits.STATUS_MISSES, "as many lies as end it")
    gadget.lies.clear()
    gadget.wait_configured(before)
    assert watch.refused() == {"session answer": gadget.told}
    bench.works()
    watch.unharmed()
