"""The ledger of acknowledged and unflushed bytes: as memory, as a file that outlives its writer, as usb keeps it."""

from pathlib import Path

import pytest

from bus.books import distrust_missing, ledger_of
from bus.runtime import Runtime, Side
from common.ledger import LEDGER_BYTES, NO_BOOT, Ledger
from common.wire import ExportRecord, Op, Response
from common.wire_v1 import RequestFlag
from gadget.usb.core import Done, UsbCore
from gadget.usb.link import Event

BOOT, NEXT_BOOT = bytes(range(16)), bytes(range(1, 17))
RECORD = ExportRecord(0xAA, 4096, 1 << 20)
ROLE = "queue.aa"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(bytearray(LEDGER_BYTES))


def test_a_flush_covers_what_was_acknowledged_when_it_was_sent_and_nothing_later(ledger: Ledger) -> None:
    ledger.wrote(4096, BOOT)
    sent_at = ledger.acknowledged
    ledger.wrote(512, BOOT)
    ledger.flushed(sent_at)
    assert ledger.unflushed == 512


def test_an_older_flush_answered_late_uncovers_nothing(ledger: Ledger) -> None:
    ledger.wrote(4096, BOOT)
    ledger.flushed(4096)
    ledger.flushed(0)
    assert ledger.unflushed == 0


def test_unflushed_writes_may_be_lost_to_another_boot_only(ledger: Ledger) -> None:
    assert not ledger.lost_to(NEXT_BOOT), "nothing was written"
    ledger.wrote(1, BOOT)
    assert ledger.lost_to(NEXT_BOOT) and not ledger.lost_to(BOOT)
    ledger.flushed(1)
    assert not ledger.lost_to(NEXT_BOOT)


def test_of_a_v0_host_nobody_knows_which_boot_it_is(ledger: Ledger) -> None:
    ledger.wrote(1, BOOT)
    assert not ledger.lost_to(NO_BOOT)
    other = Ledger(bytearray(LEDGER_BYTES))
    other.wrote(1, NO_BOOT)
    assert not other.lost_to(BOOT)


def test_a_ledger_that_was_lost_may_have_had_anything_until_somebody_accepts_a_boot(ledger: Ledger) -> None:
    ledger.distrust()
    assert ledger.unknown and ledger.lost_to(BOOT) and not ledger.lost_to(NO_BOOT)
    ledger.wrote(4096, NO_BOOT)
    ledger.flushed(4096)
    assert ledger.lost_to(BOOT), "what a v0 host flushed says nothing of what was there before"
    ledger.accept(BOOT)
    assert not ledger.unknown and not ledger.lost_to(BOOT)


def test_devices_whose_ledgers_went_with_the_runtime_directory_get_ones_that_know_nothing(tmp_path: Path) -> None:
    runtime = Runtime(Side.GADGET, base=tmp_path)
    runtime.create()
    ledger_of(runtime, 0xAA).wrote(4096, BOOT)
    assert distrust_missing(runtime, [0xAA, 0xBB]) == [0xBB]
    assert not ledger_of(runtime, 0xAA).unknown and ledger_of(runtime, 0xAA).unflushed == 4096
    assert ledger_of(runtime, 0xBB).unknown and ledger_of(runtime, 0xBB).unflushed == 0
    assert distrust_missing(runtime, [0xAA, 0xBB]) == [], "said once"
    assert ledger_of(runtime, 0xBB).unknown, "and known to every successor"


def test_writes_at_another_host_do_not_hide_what_the_first_one_has_unflushed(ledger: Ledger) -> None:
    ledger.wrote(1, BOOT)
    ledger.wrote(1, NO_BOOT)
    assert ledger.boot_id == BOOT and ledger.lost_to(NEXT_BOOT)


def test_what_the_operator_accepts_is_forgotten(ledger: Ledger) -> None:
    ledger.wrote(1, BOOT)
    ledger.accept(NEXT_BOOT)
    assert ledger.unflushed == 0 and not ledger.lost_to(NEXT_BOOT)


def test_the_file_is_there_for_whoever_comes_after_its_writer(tmp_path: Path) -> None:
    runtime = Runtime(Side.GADGET, base=tmp_path)
    runtime.create()
    ledger_of(runtime, 0xAA).wrote(4096, BOOT)
    successor = ledger_of(runtime, 0xAA)
    assert (successor.acknowledged, successor.unflushed, successor.boot_id) == (4096, 4096, BOOT)
    assert ledger_of(runtime, 0xBB).unflushed == 0


# -- as the gadget's usb keeps it ------------------------------------------------------------------------------------
def online(ledger: Ledger, v0: bool = False, boot: bytes = BOOT) -> UsbCore:
    core = UsbCore(lambda export_id: ledger)
    core.queue_arrived(ROLE, 1, RECORD, 16, 128 * 1024)
    core.v0, core.host_boot = v0, boot
    core.on(Event.ENABLED)
    core.on(Event.CONFIGURED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    return core


def ask(core: UsbCore, sequence: int, op: Op, blocks: int = 1, flags: int = 0) -> None:
    core.ask(ROLE, 1, [[sequence, int(op), sequence % 16, 0, blocks, flags]])


def answer_all(core: UsbCore, status: int = 0) -> list[int]:
    """Everything that waits goes out and is answered. The sequences that the queue is told."""
    told = []
    for send in list(core.dispatch()):
        actions = core.left(send.pending, core.epoch) + core.answered(Response.to(send.pending.request, status))
        told += [action.sequence for action in actions if isinstance(action, Done)]
    return told


@pytest.mark.parametrize(
    ("op", "flags", "unflushed"),
    [
        (Op.WRITE, 0, 8192),
        (Op.WRITE_ZEROES, 0, 8192),
        (Op.WRITE, int(RequestFlag.FUA), 0),  # stable before it is acknowledged
        (Op.DISCARD, 0, 0),  # a hint: what it leaves is right either way
    ],
)
def test_usb_counts_what_a_power_cut_could_take(ledger: Ledger, op: Op, flags: int, unflushed: int) -> None:
    core = online(ledger)
    ask(core, 1, op, 2, flags)
    assert answer_all(core) == [1] and ledger.unflushed == unflushed


def test_a_write_that_failed_is_not_counted(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.WRITE)
    assert answer_all(core, status=5) == [1] and ledger.unflushed == 0


def test_a_flush_that_failed_covers_nothing(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.WRITE)
    answer_all(core)
    ask(core, 2, Op.FLUSH)
    assert answer_all(core, status=5) == [2] and ledger.unflushed == 4096
    ask(core, 3, Op.FLUSH)
    assert answer_all(core) == [3] and ledger.unflushed == 0


def test_a_flush_covers_no_write_acknowledged_after_it_went_out(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.FLUSH)
    ask(core, 2, Op.WRITE)
    flush, write = core.dispatch()
    core.left(write.pending, core.epoch)
    core.answered(Response.to(write.pending.request, 0))
    core.answered(Response.to(flush.pending.request, 0))
    assert ledger.unflushed == 4096


def test_a_flush_said_again_after_a_loss_covers_what_was_acknowledged_meanwhile(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.FLUSH)
    list(core.dispatch())
    ledger.wrote(4096, BOOT)
    core.on(Event.LOST)
    core.on(Event.ENABLED)
    core.on(Event.CONFIGURED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    assert answer_all(core) == [1] and ledger.unflushed == 0


def test_with_a_v0_host_a_fua_write_is_covered_by_the_flush_that_follows_it(ledger: Ledger) -> None:
    core = online(ledger, v0=True, boot=NO_BOOT)
    ask(core, 1, Op.WRITE)
    answer_all(core)
    ask(core, 2, Op.WRITE, flags=int(RequestFlag.FUA))
    assert answer_all(core) == [], "only the write half"
    assert answer_all(core) == [2] and ledger.unflushed == 0


def test_an_orphans_answer_is_nobodys_acknowledgement(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.WRITE)
    (send,) = core.dispatch()
    core.queue_arrived(ROLE, 2, RECORD, 16, 128 * 1024)
    core.left(send.pending, core.epoch)
    core.answered(Response.to(send.pending.request, 0))
    assert ledger.unflushed == 0


def test_a_successor_of_usb_goes_on_with_the_same_books(ledger: Ledger) -> None:
    first = online(ledger)
    ask(first, 1, Op.WRITE)
    answer_all(first)
    second = online(ledger)
    ask(second, 1, Op.WRITE)
    answer_all(second)
    assert ledger.unflushed == 8192


def test_an_export_agreed_at_another_boot_is_one_whose_loss_was_accepted(ledger: Ledger) -> None:
    core = online(ledger)
    ask(core, 1, Op.WRITE)
    answer_all(core)
    online(ledger, boot=NEXT_BOOT)
    assert ledger.unflushed == 0 and ledger.boot_id == NEXT_BOOT
