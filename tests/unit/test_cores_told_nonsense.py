"""What the cores say to what must not be, and the looks at them that only shells take."""

import pytest

from common import limits
from common.errors import WireError
from common.framing import Packer
from common.wire import ExportRecord, Op, Status
from common.wire_v1 import Record
from gadget.ublk.core import parse_completions
from gadget.usb import core as gadget
from host.session.core import SessionCore
from host.source.core import SourceCore
from host.usb import core as host

A, B = ExportRecord(0xA, 512, 1 << 20), ExportRecord(0xB, 512, 1 << 20)


def test_an_export_belongs_to_one_queue_and_a_queue_to_one_export() -> None:
    core = gadget.UsbCore()
    core.queue_arrived("queue.a", 1, A, 4, 4096)
    with pytest.raises(WireError, match=r"queue\.b: export 0xa is queue\.a's"):
        core.queue_arrived("queue.b", 1, A, 4, 4096)
    with pytest.raises(WireError, match=r"queue\.a: was export 0xa, is now 0xb"):
        core.queue_arrived("queue.a", 2, B, 4, 4096)
    assert (core.export_id("queue.a"), core.counts()) == (0xA, {"queue.a": (0, 0)})


def test_a_queue_may_ask_for_twice_a_batch_and_not_for_one_more() -> None:
    for count, fits in ((2 * limits.MAX_BATCH, True), (2 * limits.MAX_BATCH + 1, False)):
        core = gadget.UsbCore()
        core.queue_arrived("queue.a", 1, A, 4, 4096)
        body = [[n, int(Op.READ), 0, 0, 1, 0] for n in range(count)]
        if fits:
            assert core.ask("queue.a", 1, body) == [] and core.counts() == {"queue.a": (count, 0)}
        else:
            with pytest.raises(WireError, match="more requests than a queue has tags"):
                core.ask("queue.a", 1, body)


def serving() -> host.UsbCore:
    core = host.UsbCore()
    core.offer([host.Served(A, "a", False)])
    core.attach(1)
    return core


def test_an_export_served_otherwise_has_no_source_until_one_fits_and_one_left_out_is_forgotten() -> None:
    core = serving()
    core.source_arrived("source.a", 1, A, False)
    assert core.offer([host.Served(A, "a", True)]) == []
    assert core.requested(Record(Op.READ, 0, 1, 0xA, 0, 1))[1] == [], "given to the source of before"
    core.detach()
    assert core.offer([host.Served(B, "b", False)]) == [host.Served(A, "a", True)]
    assert [served.name for served in core.offered()] == ["b"]


def test_a_source_of_what_is_not_offered_is_refused_and_its_completions_mean_nothing() -> None:
    core = serving()
    with pytest.raises(WireError, match=r"source\.x: export 0xa is not offered as source\.x"):
        core.source_arrived("source.x", 1, A, False)
    assert core.completed("source.x", [[1, 0]]) == []


def test_a_v1_read_brings_no_data_and_a_write_is_known_by_its_sequence() -> None:
    core = serving()
    with pytest.raises(WireError, match="data with a Request that has none"):
        core.requested(Record(Op.READ, 0, 1, 0xA, 0, 1, 0, 512))
    sequence, _ = core.requested(Record(Op.WRITE, 0, 1, 0xA, 0, 2, 0, 512))
    assert sequence is not None
    assert (core.payload_of(sequence), core.request_of(sequence).request_id) == (1024, 1)


def test_fewer_exports_in_force_than_announced_are_told() -> None:
    assert SessionCore(2).status(Status(True, 1, 5)).why.endswith("1 exports in force; 2 were announced")
    assert "announced" not in SessionCore(1).status(Status(True, 1, 5)).why


def test_an_arena_of_another_usb_is_refused() -> None:
    core = SourceCore(A)
    core.peer(3)
    with pytest.raises(WireError, match="an arena of generation 2, but usb is 3"):
        core.arena(2, 1 << 20)


def test_what_waits_to_be_framed_can_be_counted_and_completions_are_pairs() -> None:
    packer: Packer[int] = Packer(1)
    packer.add(Record(Op.READ, 0, 1, 0xA, 0, 1), 0, 1)
    assert len(packer) == 1
    assert parse_completions([[1, 0], [2, 5]]) == [[1, 0], [2, 5]]
