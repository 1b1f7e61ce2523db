"""Streams of v1 frames, as a hurt wire or a hostile peer would have them, into the framing and both usb cores.

What is taken is what was sent, in order; anything else is a WireError, and never an address outside a slot or an arena.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import limits
from common.errors import WireError
from common.framing import Packer, Unpacker
from common.wire import ExportRecord, Op
from common.wire_v1 import Record
from gadget.usb import core as gadget
from gadget.usb.link import Event
from host.usb import core as host
from tests.fuzz.hurt import hurt

EPOCH = 7
EXPORT = ExportRecord(0xA, 512, 1 << 20)
RECORD = Record(Op.WRITE, 0, 1, 0xA, 0, 1)
NUMBER = st.sampled_from([0, 1, 2, 512, 4096, (1 << 31) - 1, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)
RECORDS = st.builds(
    Record,
    st.sampled_from(Op),
    st.integers(0, 255),
    st.integers(0, 4) | NUMBER,
    st.just(0xA) | NUMBER,
    NUMBER | st.integers(0, (1 << 64) - 1),
    st.integers(0, 300) | NUMBER,
    NUMBER,
    st.integers(0, 1024) | NUMBER,
)


def stream(sizes: list[int]) -> list[bytes]:
    """The frames of a message for each size of payload, whose bytes all are its number."""
    packer: Packer[int] = Packer(EPOCH)
    for number, size in enumerate(sizes):
        packer.add(replace(RECORD, request_id=number), size, number)
    frames = []
    while (frame := packer.take()) is not None:
        frames.append(frame.head + b"".join(bytes([p.token]) * p.size_bytes for p in frame.parts) + bytes(frame.pad))
        assert len(frames[-1]) == frame.size_bytes < limits.FRAME_BYTES
    return frames


def joined(frames: list[bytes]) -> tuple[list[int], bool]:
    """Payload bytes of each message as far as frames are taken, and whether all were."""
    unpacker, got = Unpacker(EPOCH), list[int]()
    for frame in frames:
        try:
            placed = unpacker.take(frame)
        except WireError as error:
            assert "\n" not in str(error)
            return got, False
        for record, where in placed:
            assert where + record.data_bytes <= len(frame)
            if record.data_offset == 0:
                assert record.request_id == len(got)
                got.append(0)
            assert record.data_offset == got[-1], "a fragment out of its place"
            assert frame[where : where + record.data_bytes] == bytes([record.request_id]) * record.data_bytes
            got[-1] += record.data_bytes
    return got, True


SIZES = st.lists(st.sampled_from([0, 512, 4096, 65_000, 65_532, 131_072]), min_size=1, max_size=8)


@given(sizes=SIZES)
@settings(deadline=None)
def test_what_is_cut_into_frames_is_joined_again(sizes: list[int]) -> None:
    assert joined(stream(sizes)) == (sizes, True)


@given(sizes=SIZES, data=st.data())
@settings(deadline=None)
def test_frames_lost_doubled_swapped_or_of_before_are_an_error_at_their_place(
    sizes: list[int], data: st.DataObject
) -> None:
    frames = stream(sizes)
    order = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=len(frames) + 2))
    right = 0
    while right < len(order) and order[right] == right:
        right += 1
    got, whole = joined([frames[n] for n in order])
    assert whole == (right == len(order))
    assert got == joined(frames[:right])[0], "what came after the gap was taken"


@given(sizes=SIZES, data=st.data())
@settings(deadline=None)
def test_a_hurt_frame_is_an_error_or_bytes_within_it(sizes: list[int], data: st.DataObject) -> None:
    frames = stream(sizes)
    at = data.draw(st.integers(0, len(frames) - 1))
    frames[at] = data.draw(hurt(frames[at][:400])) + frames[at][400:]
    unpacker = Unpacker(EPOCH)
    for frame in frames:
        try:
            placed = unpacker.take(frame)
        except WireError as error:
            assert "\n" not in str(error)
            return
        assert all(where >= 0 and where + record.data_bytes <= len(frame) for record, where in placed)


@pytest.mark.parametrize("v0", [False, True], ids=["v1", "v0"])
@given(records=st.lists(RECORDS, max_size=12), blocks=st.integers(1, 8))
@settings(deadline=None)
def test_any_responses_touch_nothing_outside_their_slots(v0: bool, records: list[Record], blocks: int) -> None:
    core = gadget.UsbCore()
    for event in (Event.ENABLED, Event.CONFIGURED, Event.AGREED):
        core.on(event)
    core.v0 = v0
    core.agree(frozenset({0xA}))
    core.queue_arrived("queue.a", 5, EXPORT, 4, 4096)
    core.ask("queue.a", 5, [[n, int(op), n, 0, blocks, 0] for n, op in enumerate((Op.READ, Op.WRITE, Op.READ))])
    sent = list(core.dispatch())
    honest = [
        replace(r, op=p.request.op, mark=0, request_id=p.request.request_id, export_id=0xA, lba=0, blocks=blocks)
        for p, r in zip([s.pending for s in sent] * 4, records, strict=False)
    ]
    done = []
    for record in [r for pair in zip(records, honest, strict=False) for r in pair]:
        try:
            actions = core.arrived(record)
        except WireError as error:
            assert "\n" not in str(error)
            continue
        for action in actions:
            if isinstance(action, gadget.Copy):
                assert action.offset + action.size_bytes <= blocks * 512 <= 4096
            else:
                assert isinstance(action, gadget.Done)
                done.append(action.sequence)
    assert len(done) == len(set(done)) <= 3, "a request was completed twice"


@pytest.mark.parametrize("version", [0, 1])
@given(records=st.lists(RECORDS, max_size=20))
@settings(deadline=None)
def test_any_requests_touch_nothing_outside_the_arena(version: int, records: list[Record]) -> None:
    core = host.UsbCore()
    core.offer([host.Served(EXPORT, "a", False)])
    core.attach(version)
    core.source_arrived("source.a", 3, EXPORT, False)
    for record in records:
        try:
            _, actions = core.requested(record)
        except WireError as error:
            assert "\n" not in str(error)
            continue
        for action in actions:
            if isinstance(action, host.Take):
                assert action.offset + action.size_bytes <= limits.HOST_ARENA_BYTES
            elif isinstance(action, host.Dispatch):
                _, op, offset, lba, blocks, _ = action.item
                assert op == Op.FLUSH or (lba + blocks) * 512 <= EXPORT.size_bytes  # a FLUSH covers all of it
                assert op not in (Op.READ, Op.WRITE) or offset + blocks * 512 <= limits.HOST_ARENA_BYTES
    assert core.counts()["a"]["in_flight"] <= limits.MAX_IN_FLIGHT
    assert core.counts()["a"]["arena_bytes"] <= limits.HOST_ARENA_BYTES
