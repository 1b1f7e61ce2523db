"""The gadget's usb core: the link table, replay after a loss, and the fence after a queue's death."""

import itertools
from errno import EOPNOTSUPP

import pytest

from common.errors import Illegal, WireError
from common.wire import ExportRecord, Op, Request, Response
from common.wire_v1 import Record, RequestFlag
from gadget.usb.core import Copy, Done, Fill, Release, Send, UsbCore
from gadget.usb.link import TABLE, Event, Link, Step

RECORD = ExportRecord(0xAA, 4096, 1 << 20)
ROLE = "queue.aa"
SLOT = 128 * 1024


def online(generation: int = 1) -> UsbCore:
    core = UsbCore()
    core.queue_arrived(ROLE, generation, RECORD, 16, SLOT)
    core.on(Event.ENABLED)
    core.on(Event.CONFIGURED)
    core.agree(frozenset({RECORD.export_id}))
    assert core.on(Event.AGREED) == (Step.ARM, Step.DISPATCH)
    return core


def read(sequence: int, slot: int, lba: int = 0) -> list[int]:
    return [sequence, int(Op.READ), slot, lba, 1, 0]


def write(sequence: int, slot: int, lba: int = 0) -> list[int]:
    return [sequence, int(Op.WRITE), slot, lba, 1, 0]


def sent(core: UsbCore) -> list[Send]:
    return list(core.dispatch())


def answer(send: Send, status: int = 0) -> Response:
    return Response.to(send.pending.request, status)


def test_every_pair_of_link_and_event_is_in_the_table() -> None:
    assert set(TABLE) == set(itertools.product(Link, Event))


def test_an_event_outside_the_table_raises_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TABLE, (Link.ABSENT, Event.HEARD))
    core = UsbCore()
    with pytest.raises(Illegal):
        core.on(Event.HEARD)
    assert core.link is Link.ABSENT


def test_nothing_is_on_the_wire_before_exports_are_agreed() -> None:
    core = UsbCore()
    core.queue_arrived(ROLE, 1, RECORD, 16, SLOT)
    core.ask(ROLE, 1, [read(1, 0)])
    core.on(Event.ENABLED)
    assert sent(core) == []
    core.agree(frozenset({0xBB}))
    core.on(Event.AGREED)
    assert sent(core) == []
    core.agree(frozenset({RECORD.export_id}))
    assert [s.pending.sequence for s in sent(core)] == [1]


def test_a_read_is_done_only_when_its_payload_is_there() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 3)])
    (send,) = sent(core)
    assert send.payload_bytes == 0
    (fill,) = core.answered(answer(send))
    assert fill == Fill(send.pending, 4096)
    assert core.filled(send.pending, core.epoch) == [Done(ROLE, 1, 1, 0)]


def test_a_failed_read_has_no_payload() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 3)])
    (send,) = sent(core)
    assert core.answered(answer(send, 5)) == [Done(ROLE, 1, 1, 5)]


def test_a_write_carries_its_payload_and_is_done_when_answered() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 3)])
    (send,) = sent(core)
    assert send.payload_bytes == 4096
    assert core.left(send.pending, core.epoch) == []
    assert core.answered(answer(send)) == [Done(ROLE, 1, 1, 0)]


def test_a_write_refused_before_its_payload_has_left_keeps_its_slot_until_then() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 3)])
    (send,) = sent(core)
    assert core.answered(answer(send, 28)) == []
    assert core.left(send.pending, core.epoch) == [Done(ROLE, 1, 1, 28)]


def test_a_payload_that_left_in_an_ended_epoch_does_not_count() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 3)])
    (send,) = sent(core)
    old_epoch = core.epoch
    core.on(Event.LOST)
    core.on(Event.ENABLED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    (again,) = sent(core)
    assert core.left(send.pending, old_epoch) == []
    assert core.answered(answer(again)) == []
    assert core.left(again.pending, core.epoch) == [Done(ROLE, 1, 1, 0)]


def test_everything_unanswered_is_sent_again_in_order_after_a_loss() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 0), read(2, 1), write(3, 2)])
    first = sent(core)
    old_epoch = core.epoch
    core.answered(answer(first[1]))  # FILLING: its payload is lost with the link
    core.ask(ROLE, 1, [read(4, 3)])
    core.on(Event.LOST)
    core.on(Event.ENABLED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    assert [s.pending.sequence for s in sent(core)] == [1, 2, 3, 4]
    assert core.filled(first[1].pending, old_epoch) == []  # the late end of the lost payload completes nothing


def test_an_enable_without_a_loss_before_it_is_a_loss() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 0)])
    sent(core)
    assert core.on(Event.ENABLED) == (Step.NEW_EPOCH,)
    assert core.link is Link.HANDSHAKE
    assert sent(core) == []


def test_an_answer_of_another_request_starts_the_link_over() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 0)])
    (send,) = sent(core)
    wrong = Response(Op.WRITE, 0, 0, RECORD.export_id, 0, 1)
    with pytest.raises(WireError, match="answers nothing"):
        core.answered(wrong)
    core.answered(answer(send))
    with pytest.raises(WireError, match="second Response"):
        core.answered(answer(send))


def test_new_requests_wait_until_the_dead_queues_are_answered() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 0), write(2, 1)])
    old = sent(core)
    core.queue_arrived(ROLE, 2, RECORD, 16, SLOT)
    core.ask(ROLE, 2, [write(1, 5)])
    assert sent(core) == []
    for send in old:
        core.left(send.pending, core.epoch)
    assert core.answered(answer(old[0])) == []  # an orphan's answer is nobody's
    assert sent(core) == []
    assert core.answered(answer(old[1])) == [Release(ROLE, 1)]
    assert [s.pending.arena for s in sent(core)] == [2]


def test_an_orphans_read_payload_goes_to_the_old_arena() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 0)])
    (old,) = sent(core)
    core.queue_arrived(ROLE, 2, RECORD, 16, SLOT)
    (fill,) = core.answered(answer(old))
    assert isinstance(fill, Fill) and fill.pending.arena == 1
    assert core.filled(fill.pending, core.epoch) == [Release(ROLE, 1)]


def test_a_new_link_epoch_frees_the_dead_queues_arena_and_the_fence() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 0)])
    sent(core)
    core.queue_arrived(ROLE, 2, RECORD, 16, SLOT)
    core.ask(ROLE, 2, [read(1, 0)])
    core.on(Event.LOST)
    assert core.releasable() == [Release(ROLE, 1)]
    core.on(Event.ENABLED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    assert [s.pending.arena for s in sent(core)] == [2]


def test_requests_of_a_dead_generation_are_refused() -> None:
    core = online()
    core.queue_arrived(ROLE, 2, RECORD, 16, SLOT)
    with pytest.raises(WireError, match="not a queue of this generation"):
        core.ask(ROLE, 1, [read(1, 0)])


def test_a_request_past_the_end_fails_alone() -> None:
    core = online()
    done = core.ask(ROLE, 1, [read(1, 0, lba=RECORD.blocks), read(2, 1)])
    assert done == [Done(ROLE, 1, 1, 22)]
    assert [s.pending.sequence for s in sent(core)] == [2]


@pytest.mark.parametrize(
    "item", [[1, 2], "x", [1, 0, 99, 0, 1, 0], [1, 9, 0, 0, 1, 0], [1, 0, 0, -1, 1, 0], [1, 1, 0, 0, 1, 256], None]
)
def test_a_malformed_request_from_a_queue_is_one_error(item: object) -> None:
    with pytest.raises(WireError, match=r"queue\.aa"):
        online().ask(ROLE, 1, [item])


def test_one_export_does_not_wait_for_anothers_fence() -> None:
    core = online()
    other = ExportRecord(0xBB, 512, 1 << 20)
    core.queue_arrived("queue.bb", 1, other, 16, SLOT)
    core.agree(frozenset({0xAA, 0xBB}))
    core.ask(ROLE, 1, [write(1, 0)])
    sent(core)
    core.queue_arrived(ROLE, 2, RECORD, 16, SLOT)
    core.ask(ROLE, 2, [write(1, 0)])
    core.ask("queue.bb", 1, [read(1, 0)])
    assert [s.pending.export for s in sent(core)] == ["queue.bb"]


def test_exports_configured_anew_after_data_moved_re_enumerate() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 0)])
    sent(core)
    assert core.on(Event.CONFIGURED) == (Step.REENUMERATE,)
    core.on(Event.LOST)
    core.on(Event.ENABLED)
    assert core.on(Event.CONFIGURED) == (Step.ASK_SESSION,)


def test_a_set_announced_while_online_is_not_in_force_before_the_session_has_agreed() -> None:
    """Found by review: the set of before stayed in force, and requests went to a host that may not know them."""
    core = online()
    assert core.on(Event.CONFIGURED) == (Step.ASK_SESSION,)
    core.ask(ROLE, 1, [read(1, 0)])
    assert core.link is Link.HANDSHAKE and sent(core) == []
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    assert len(sent(core)) == 1


def test_an_update_within_an_epoch_disturbs_nothing_that_is_out() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 0)])
    (send,) = sent(core)
    assert core.on(Event.UPDATED) == (Step.ASK_SESSION,)
    assert core.arrived(record_of(send, data_bytes=4096))[-1] == Done(ROLE, 1, 1, 0)


# -- FUA ---------------------------------------------------------------------------------------------------------
def fua_write(sequence: int, slot: int) -> list[int]:
    return [sequence, int(Op.WRITE), slot, 0, 1, int(RequestFlag.FUA)]


def test_a_fua_write_to_a_v0_host_is_a_write_and_then_a_flush() -> None:
    core = online()
    core.ask(ROLE, 1, [fua_write(1, 3)])
    (first,) = sent(core)
    assert (first.pending.request.op, first.pending.request.flags) == (Op.WRITE, 0)
    core.left(first.pending, core.epoch)
    write = answer(first)
    assert core.answered(write) == []
    (second,) = sent(core)
    assert second.pending.request == Request(Op.FLUSH, 3, RECORD.export_id, 0, 0) and second.payload_bytes == 0
    assert core.answered(answer(second)) == [Done(ROLE, 1, 1, 0)]


def test_a_fua_write_that_a_v0_host_refuses_is_not_flushed() -> None:
    core = online()
    core.ask(ROLE, 1, [fua_write(1, 3)])
    (send,) = sent(core)
    core.left(send.pending, core.epoch)
    assert core.answered(answer(send, 28)) == [Done(ROLE, 1, 1, 28)]


def test_a_link_lost_between_its_halves_begins_a_fua_write_anew() -> None:
    """The host may have been switched off meanwhile: a FLUSH alone would cover nothing."""
    for take_flush in (True, False):
        core = online()
        core.ask(ROLE, 1, [fua_write(1, 3)])
        (send,) = sent(core)
        core.left(send.pending, core.epoch)
        core.answered(answer(send))
        if take_flush:
            assert sent(core)[0].pending.request.op is Op.FLUSH
        core.on(Event.ENABLED)
        core.v0 = False
        core.agree(frozenset({RECORD.export_id}))
        core.on(Event.AGREED)
        (again,) = sent(core)
        assert (again.pending.request.op, again.pending.request.flags) == (Op.WRITE, RequestFlag.FUA)


def test_write_zeroes_is_carried_by_v1_and_refused_for_v0_so_that_the_block_layer_writes_them() -> None:
    for v0 in (True, False):
        core = online()
        core.v0 = v0
        core.ask(ROLE, 1, [[1, int(Op.WRITE_ZEROES), 0, 0, 8, 0], read(2, 1)])
        assert core.unspeakable() == ([Done(ROLE, 1, 1, EOPNOTSUPP)] if v0 else [])
        assert [s.pending.request.op for s in sent(core)] == [Op.READ] if v0 else [Op.WRITE_ZEROES, Op.READ]


def test_v1_carries_fua_as_it_is() -> None:
    core = online()
    core.v0 = False
    core.ask(ROLE, 1, [fua_write(1, 3)])
    (send,) = sent(core)
    core.left(send.pending, core.epoch)
    assert send.pending.request.flags == RequestFlag.FUA
    assert core.arrived(record_of(send)) == [Done(ROLE, 1, 1, 0)]


# -- v1 ----------------------------------------------------------------------------------------------------------
def record_of(send: Send, status: int = 0, data_offset: int = 0, data_bytes: int = 0) -> Record:
    r = send.pending.request
    return Record(r.op, status, r.request_id, r.export_id, r.lba, r.blocks, data_offset, data_bytes)


def test_the_fragments_of_a_read_are_copied_to_their_places_and_the_last_one_ends_it() -> None:
    core = online()
    core.ask(ROLE, 1, [[1, int(Op.READ), 3, 0, 16, 0]])
    (send,) = sent(core)
    assert core.arrived(record_of(send, 0, 0, 60000)) == [Copy(send.pending, 0, 60000)]
    assert core.arrived(record_of(send, 0, 60000, 5536)) == [Copy(send.pending, 60000, 5536), Done(ROLE, 1, 1, 0)]


@pytest.mark.parametrize(
    ("status", "offset", "size"),
    [(0, 4, 4092), (0, 0, 0), (0, 0, 4097), (5, 0, 4096), (5, 4096, 0)],
    ids=["a gap", "empty", "too long", "data of a failed read", "a failed read in the middle"],
)
def test_a_fragment_out_of_its_place_is_an_error(status: int, offset: int, size: int) -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 3)])
    (send,) = sent(core)
    with pytest.raises(WireError):
        core.arrived(record_of(send, status, offset, size))


def test_a_read_cannot_fail_once_part_of_it_has_come_nor_begin_again() -> None:
    for status, offset, size in ((5, 0, 0), (0, 0, 100)):
        core = online()
        core.ask(ROLE, 1, [read(1, 3)])
        (send,) = sent(core)
        core.arrived(record_of(send, 0, 0, 1000))
        with pytest.raises(WireError):
            core.arrived(record_of(send, status, offset, size))


def test_a_half_filled_read_begins_anew_in_a_new_epoch() -> None:
    core = online()
    core.ask(ROLE, 1, [read(1, 3)])
    (send,) = sent(core)
    core.arrived(record_of(send, 0, 0, 1000))
    core.on(Event.ENABLED)
    core.agree(frozenset({RECORD.export_id}))
    core.on(Event.AGREED)
    (again,) = sent(core)
    assert core.arrived(record_of(again, 0, 0, 4096)) == [Copy(again.pending, 0, 4096), Done(ROLE, 1, 1, 0)]


def test_a_v1_write_is_done_when_it_is_answered_and_its_payload_has_left() -> None:
    core = online()
    core.ask(ROLE, 1, [write(1, 3), write(2, 4)])
    first, second = sent(core)
    core.left(first.pending, core.epoch)
    assert core.arrived(record_of(first)) == [Done(ROLE, 1, 1, 0)]
    assert core.arrived(record_of(second, 28)) == []
    assert core.left(second.pending, core.epoch) == [Done(ROLE, 1, 2, 28)]


def test_a_silent_host_parks_and_a_word_from_it_goes_on() -> None:
    core = online()
    core.on(Event.SILENT)
    core.ask(ROLE, 1, [read(1, 0)])
    assert core.link is Link.PARKED and sent(core) == []
    assert core.on(Event.HEARD) == (Step.DISPATCH,)
    assert len(sent(core)) == 1


def test_a_slot_that_is_asked_for_twice_is_on_the_wire_once_at_a_time() -> None:
    """v0 builds ids from slots, and an id is to be unique while it is in flight."""
    core = online()
    core.ask(ROLE, 1, [read(1, 3), read(2, 3)])
    (first,) = sent(core)
    assert sent(core) == [] and core.counts() == {ROLE: (1, 1)}
    core.answered(answer(first))
    core.filled(first.pending, core.epoch)
    (second,) = sent(core)
    assert (first.pending.sequence, second.pending.sequence) == (1, 2)
