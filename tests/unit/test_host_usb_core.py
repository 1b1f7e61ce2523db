"""The host's in-flight table: payload order, refusals, epochs, hold-back, and space that is never given twice."""

import contextlib
from errno import EINVAL, EIO, EROFS

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import limits
from common.errors import WireError
from common.wire import ExportRecord, Op, Request, Response
from common.wire_v1 import Record
from host.usb.core import Action, Answer, Dispatch, Served, Take, UsbCore
from host.usb.extents import Extents

BLOCK = 4096
DISK = Served(ExportRecord(0x11, BLOCK, 64 << 20), "disk", False)
ROM = Served(ExportRecord(0x22, BLOCK, 1 << 20), "rom", True)


def core(with_sources: bool = True) -> UsbCore:
    usb = UsbCore()
    usb.offer([DISK, ROM])
    usb.attach()
    if with_sources:
        for served in (DISK, ROM):
            assert usb.source_arrived(served.role, 1, served.record, served.read_only) == []
    return usb


def ask(
    usb: UsbCore, op: Op, request_id: int, lba: int = 0, blocks: int = 1, export: int = 0x11, flags: int = 0
) -> list[Action]:
    return usb.received(Request(op, request_id, export, lba, blocks, flags))


def only(actions: list[Action]) -> Action:
    assert len(actions) == 1
    return actions[0]


def dispatched(actions: list[Action]) -> list[int]:
    return [action.item[0] for action in actions if isinstance(action, Dispatch)]


def written(usb: UsbCore, request_id: int, blocks: int = 1) -> int:
    """A write whose payload is in the arena; returns its sequence. It is at its source if that may have it."""
    take = next(a for a in ask(usb, Op.WRITE, request_id, blocks=blocks) if isinstance(a, Take))
    usb.taken(take.sequence)
    return take.sequence


def test_read_goes_to_its_source_at_once_and_its_answer_carries_the_payload() -> None:
    usb = core()
    sent = only(ask(usb, Op.READ, 7, lba=3, blocks=2))
    assert sent == Dispatch("source.disk", [1, Op.READ, 0, 3, 2, 0])
    answer = only(usb.completed("source.disk", [[1, 0]]))
    assert answer == Answer(Response(Op.READ, 0, 7, 0x11, 3, 2), 1, 0, 2 * BLOCK)
    assert usb.counts()["disk"]["arena_bytes"] == 2 * BLOCK
    assert usb.sent(1) == []
    assert usb.counts()["disk"]["arena_bytes"] == 0


def test_write_reaches_its_source_only_after_its_payload() -> None:
    usb = core()
    assert only(ask(usb, Op.WRITE, 7)) == Take(1, 0x11, 0, BLOCK)
    assert only(usb.taken(1)) == Dispatch("source.disk", [1, Op.WRITE, 0, 0, 1, 0])
    assert only(usb.completed("source.disk", [[1, 0]])) == Answer(Response(Op.WRITE, 0, 7, 0x11, 0, 1), 1, 0, 0)


def test_failed_read_carries_the_errno_and_no_payload() -> None:
    usb = core()
    ask(usb, Op.READ, 7)
    assert only(usb.completed("source.disk", [[1, EIO]])) == Answer(Response(Op.READ, EIO, 7, 0x11, 0, 1), 1, 0, 0)
    assert usb.counts()["disk"]["arena_bytes"] == 0


def test_write_payloads_are_taken_in_the_order_of_the_requests_even_when_one_waits_for_space() -> None:
    usb = core()
    blocks = limits.MAX_REQUEST_BYTES // BLOCK
    full = limits.HOST_ARENA_BYTES // limits.MAX_REQUEST_BYTES
    for number in range(full):
        assert isinstance(only(ask(usb, Op.READ, number, blocks=blocks)), Dispatch)
    assert ask(usb, Op.WRITE, 50) == [], "the arena is full"
    assert ask(usb, Op.WRITE, 5, export=0x22) == [], "its turn comes after the one that waits"
    answer, first, second = usb.completed("source.disk", [[1, EIO]])
    assert isinstance(answer, Answer) and answer.response.status == EIO
    assert first == Take(full + 1, 0x11, 0, BLOCK)
    assert second == Take(full + 2, None, 0, BLOCK), "of the read-only export: thrown away"


def test_refused_write_is_answered_after_its_payload_was_taken_and_thrown_away() -> None:
    usb = core()
    assert only(ask(usb, Op.WRITE, 7, lba=(64 << 20) // BLOCK)) == Take(1, None, 0, BLOCK)
    answer = only(usb.taken(1))
    assert isinstance(answer, Answer) and answer.response.status == EINVAL


@pytest.mark.parametrize("op", [Op.READ, Op.DISCARD])
@pytest.mark.parametrize("lba, blocks", [(0, 0), ((64 << 20) // BLOCK, 1), ((1 << 64) - 1, 1)])
def test_request_out_of_bounds_is_told_einval(op: Op, lba: int, blocks: int) -> None:
    answer = only(ask(core(), op, 7, lba=lba, blocks=blocks))
    assert isinstance(answer, Answer) and answer.response.status == EINVAL


def test_flags_that_v0_does_not_have_are_told_einval() -> None:
    answer = only(ask(core(), Op.READ, 7, flags=1))
    assert isinstance(answer, Answer) and answer.response.status == EINVAL


def test_read_only_export_refuses_writes_whatever_the_gadget_sends() -> None:
    usb = core()
    assert only(ask(usb, Op.WRITE, 1, export=0x22)) == Take(1, None, 0, BLOCK)
    refused = [*usb.taken(1), *ask(usb, Op.DISCARD, 2, export=0x22)]
    assert [a.response.status for a in refused if isinstance(a, Answer)] == [EROFS, EROFS]


@pytest.mark.parametrize("op", [Op.READ, Op.FLUSH, Op.DISCARD])
def test_request_for_an_unknown_export_is_told_einval(op: Op) -> None:
    answer = only(ask(core(), op, 7, export=0x99))
    assert isinstance(answer, Answer) and answer.response.status == EINVAL


def test_what_is_refused_without_its_source_says_why_once_for_each() -> None:
    usb = core()
    ask(usb, Op.READ, 1, lba=0, blocks=0)
    ask(usb, Op.DISCARD, 2, export=0x22)
    ask(usb, Op.READ, 3, export=0x99)
    ask(usb, Op.READ, 4, flags=1)
    ask(usb, Op.READ, 5)
    assert [why.partition(":")[2].strip() or why for why in usb.refused] == [
        "READ of 0 blocks",
        "DISCARD, but it is read-only",
        "READ of export 0x99, which we do not serve",
        "READ with flags 0x1, known are 0x0",
    ]


def test_write_to_an_unknown_export_ends_the_attachment_as_its_length_is_unknown() -> None:
    with pytest.raises(WireError, match="a write to an export we do not serve"):
        ask(core(), Op.WRITE, 7, export=0x99)


def test_largest_write_is_taken_and_one_block_more_ends_the_attachment() -> None:
    blocks = limits.MAX_REQUEST_BYTES // BLOCK
    assert only(ask(core(), Op.WRITE, 7, blocks=blocks)) == Take(1, 0x11, 0, limits.MAX_REQUEST_BYTES)
    with pytest.raises(WireError, match="a write of 1052672 bytes is more than 1048576"):
        ask(core(), Op.WRITE, 7, blocks=blocks + 1)


def test_request_id_used_twice_ends_the_attachment() -> None:
    usb = core()
    ask(usb, Op.READ, 7)
    with pytest.raises(WireError, match="request id 0x7 is in flight already"):
        ask(usb, Op.READ, 7)


def test_request_id_may_be_used_again_once_it_is_answered() -> None:
    usb = core()
    ask(usb, Op.FLUSH, 7)
    usb.completed("source.disk", [[1, 0]])
    assert dispatched(ask(usb, Op.FLUSH, 7)) == [2]


def test_as_many_requests_as_allowed_and_not_one_more() -> None:
    usb = core()
    for number in range(limits.MAX_IN_FLIGHT):
        ask(usb, Op.FLUSH, number)
    with pytest.raises(WireError, match="export 0x11: more than 128 requests in flight"):
        ask(usb, Op.FLUSH, limits.MAX_IN_FLIGHT)


def test_requests_wait_for_a_source_that_is_not_there() -> None:
    usb = core(with_sources=False)
    assert ask(usb, Op.READ, 1) == []
    assert dispatched(usb.source_arrived("source.disk", 1, DISK.record, False)) == [1]


def test_successor_of_a_dead_source_gets_what_is_unanswered_once_with_the_same_sequences() -> None:
    usb = core()
    first = written(usb, 1)
    ask(usb, Op.FLUSH, 2)
    usb.completed("source.disk", [[first, 0]])
    third = written(usb, 3)
    assert dispatched(usb.source_arrived("source.disk", 2, DISK.record, False)) == [2, third]
    assert usb.source_arrived("source.rom", 2, ROM.record, True) == []


def test_source_that_is_another_disk_than_announced_gets_nothing() -> None:
    usb = core(with_sources=False)
    ask(usb, Op.READ, 1)
    with pytest.raises(WireError, match=r"source\.disk: has"):
        usb.source_arrived("source.disk", 1, ExportRecord(0x11, BLOCK, 1 << 20), False)
    assert ask(usb, Op.READ, 2) == []


def test_new_attachment_starts_nothing_before_older_work_of_that_export_has_ended() -> None:
    usb = core()
    old = written(usb, 1)
    usb.detach()
    usb.attach()
    assert ask(usb, Op.READ, 1) == []
    assert dispatched(ask(usb, Op.READ, 1, export=0x22)) == [3], "another export is not held back"
    actions = usb.completed("source.disk", [[old, 0]])
    assert dispatched(actions) == [2] and not any(isinstance(a, Answer) for a in actions)


def test_death_of_a_source_ends_its_orphans() -> None:
    usb = core()
    written(usb, 1)
    usb.detach()
    usb.attach()
    assert ask(usb, Op.READ, 1) == []
    assert dispatched(usb.source_arrived("source.disk", 2, DISK.record, False)) == [2]
    assert usb.counts()["disk"] == {"in_flight": 1, "at_source": 1, "orphans": 0, "arena_bytes": BLOCK}


def test_space_of_an_orphan_is_not_given_to_anybody_before_it_has_ended() -> None:
    usb = core()
    old = written(usb, 1)
    usb.detach()
    usb.attach()
    take = only(ask(usb, Op.WRITE, 1))
    assert isinstance(take, Take) and take.offset != 0
    usb.completed("source.disk", [[old, 0]])
    again = only(ask(usb, Op.WRITE, 2))
    assert isinstance(again, Take) and again.offset == 0


def test_requests_that_had_not_reached_a_source_are_forgotten_with_their_attachment() -> None:
    usb = core(with_sources=False)
    ask(usb, Op.WRITE, 1)
    ask(usb, Op.READ, 2)
    usb.detach()
    assert usb.counts()["disk"] == {"in_flight": 0, "at_source": 0, "orphans": 0, "arena_bytes": 0}
    assert usb.taken(1) == []


def test_read_payload_still_leaving_gives_its_space_back_when_the_attachment_ends() -> None:
    usb = core()
    ask(usb, Op.READ, 1)
    usb.completed("source.disk", [[1, 0]])
    usb.detach()
    assert usb.counts()["disk"]["arena_bytes"] == 0
    assert usb.sent(1) == []


@pytest.mark.parametrize("body", [None, 1, [1], [[1]], [[1, 256]], [[1, -1]], [["1", 0]], [[True, 0]], [[0, 0]]])
def test_malformed_completions_are_one_error_and_change_nothing(body: object) -> None:
    usb = core()
    ask(usb, Op.READ, 1)
    with pytest.raises(WireError, match=r"source\.disk: COMPLETIONS is not a list"):
        usb.completed("source.disk", body)
    assert usb.counts()["disk"]["at_source"] == 1


def test_completion_that_answers_nothing_is_ignored() -> None:
    usb = core()
    ask(usb, Op.READ, 1)
    assert usb.completed("source.rom", [[1, 0]]) == []
    assert usb.completed("source.disk", [[99, 0]]) == []


@given(st.binary(min_size=0, max_size=40))
def test_every_message_is_dealt_with_or_ends_the_attachment(data: bytes) -> None:
    usb = core()
    with contextlib.suppress(WireError):
        usb.received(Request.decode(data))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40 * 1024), st.integers(0, 30)), max_size=60))
def test_extents_never_overlap_and_all_come_back(steps: list[tuple[bool, int, int]]) -> None:
    space = Extents(256 * 1024)
    held: dict[int, int] = {}
    for take, size, which in steps:
        if take:
            offset = space.take(size)
            if offset is not None:
                rounded = -(-size // limits.PAGE) * limits.PAGE
                assert all(offset + rounded <= o or o + s <= offset for o, s in held.items())
                assert offset % limits.PAGE == 0 and offset + rounded <= space.size_bytes
                held[offset] = rounded
        elif held:
            offset = sorted(held)[which % len(held)]
            space.free(offset)
            del held[offset]
        assert space.taken_bytes == sum(held.values())
    for offset in held:
        space.free(offset)
    assert space.take(space.size_bytes) == 0


class Model:
    """Drives a core at random as gadget, bulk threads and sources would; checks what must hold at each step."""

    def __init__(self) -> None:
        self.usb = core()
        self.expected_takes: list[tuple[int, int]] = []  # (request id, export) of writes, in order
        self.at_source: dict[str, set[int]] = {"source.disk": set(), "source.rom": set()}
        self.sending: list[int] = []
        self.taking: list[int] = []
        self.ids: set[tuple[int, int]] = set()
        self.old: set[int] = set()
        self.generation = 1

    def see(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Take):
                self.taking.append(action.sequence)
            elif isinstance(action, Dispatch):
                assert action.item[0] not in self.at_source[action.role], "given twice to one incarnation"
                assert not self.old & self.at_source[action.role], "started before older work had ended"
                self.at_source[action.role].add(action.item[0])
            else:
                self.ids.discard((action.response.export_id, action.response.request_id))
                if action.size_bytes:
                    self.sending.append(action.sequence)

    def step(self, kind: int, number: int) -> None:
        served = (DISK, ROM)[number % 2]
        there = self.at_source[served.role]
        match kind:
            case 0 | 1 | 2:
                key = (served.record.export_id, number)
                if key not in self.ids and len(self.ids) < limits.MAX_IN_FLIGHT:
                    self.ids.add(key)
                    op = Op(number % 4)
                    self.see(ask(self.usb, op, number, blocks=1 + number * 7 % 256, export=served.record.export_id))
            case 3 if self.taking:
                self.see(self.usb.taken(self.taking.pop(0)))
            case 4 if there:
                sequence = sorted(there)[number % len(there)]
                there.discard(sequence)
                self.old.discard(sequence)
                self.see(self.usb.completed(served.role, [[sequence, 0 if number % 5 else EIO]]))
            case 5 if self.sending:
                self.see(self.usb.sent(self.sending.pop(0)))
            case 6:
                self.generation += 1
                self.old -= there
                there.clear()
                self.see(self.usb.source_arrived(served.role, self.generation, served.record, served.read_only))
            case 7:
                self.usb.detach()
                self.old |= set().union(*self.at_source.values())
                self.taking, self.sending, self.ids = [], [], set()
                self.usb.attach()


@settings(deadline=None)  # of a machine that has other work
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 60)), max_size=150))
def test_whatever_happens_everything_is_answered_and_all_space_comes_back(steps: list[tuple[int, int]]) -> None:
    model = Model()
    for kind, number in steps:
        model.step(kind, number)
    for _ in range(10 * len(steps) + 10):
        for number in (0, 1):
            for kind in (3, 4, 5):
                model.step(kind, number)
    assert model.ids == set()
    for count in model.usb.counts().values():
        assert count == {"in_flight": 0, "at_source": 0, "orphans": 0, "arena_bytes": 0}


@pytest.mark.parametrize(
    ("version", "op", "flags", "status"),
    [(0, Op.WRITE, 1, EINVAL), (1, Op.WRITE, 1, 0), (1, Op.WRITE, 3, EINVAL), (1, Op.READ, 1, EINVAL)],
)
def test_a_flag_is_known_or_its_request_refused(version: int, op: Op, flags: int, status: int) -> None:
    usb = core()
    usb.detach()
    usb.attach(version)
    _, actions = usb.requested(Record(op, flags, 1, 0x11, 0, 1))
    takes = [action.sequence for action in actions if isinstance(action, Take)]
    for sequence in takes:
        actions = usb.taken(sequence)
    if status:
        assert [action.response.status for action in actions if isinstance(action, Answer)] == [status]
    else:
        assert [action.item[5] for action in actions if isinstance(action, Dispatch)] == [flags]


def test_v1_writes_do_not_wait_for_one_another() -> None:
    """v0 payloads come in the order of their Requests; v1's say whose they are."""
    usb = core()
    usb.detach()
    usb.attach(1)
    blocks = limits.MAX_REQUEST_BYTES // BLOCK
    for number in range(limits.HOST_ARENA_BYTES // limits.MAX_REQUEST_BYTES):
        usb.requested(Record(Op.WRITE, 0, number, 0x11, 0, blocks))
    assert usb.requested(Record(Op.WRITE, 0, 99, 0x11, 0, blocks))[1] == [], "no space: it waits"
    other = Served(ExportRecord(0x33, BLOCK, 1 << 20), "other", False)
    usb.offer([DISK, ROM, other])
    (take,) = usb.requested(Record(Op.WRITE, 0, 1, 0x33, 0, 1))[1]
    assert isinstance(take, Take) and take.export_id == 0x33
