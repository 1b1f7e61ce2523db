"""The gadget's session: which devices exist, what a state file may be, never silently another disk."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WireError
from common.wire import ConfigExports, ExportRecord
from common.wire_v1 import ConfigV1, ExportFlag, ExportV1
from gadget.session.core import adopt, configure, exports_of, without
from gadget.session.state import Device, State, load, save

A, B = ExportRecord(0xA, 4096, 1 << 20), ExportRecord(0xB, 512, 1 << 20)
IDENTITY, OTHER = bytes(range(16)), bytes(range(1, 17))


def announced(*records: ExportRecord) -> tuple[ExportV1, ...]:
    return tuple(ExportV1(record) for record in records)


NONE: frozenset[int] = frozenset()


def test_each_export_gets_the_smallest_free_device_number() -> None:
    decision = configure(State(1), announced(A, B), frozenset({0, 2}), 4096)
    assert [(d.record, d.ublk_id) for d in decision.state.devices] == [(A, 1), (B, 3)]
    assert decision.agreed == {0xA, 0xB}


def test_the_same_set_again_keeps_every_device() -> None:
    first = configure(State(1), announced(A, B), NONE, 4096).state
    again = configure(first, announced(B, A), frozenset({0, 1}), 4096)
    assert again.state == first and again.agreed == {0xA, 0xB}


@pytest.mark.parametrize("flag", [ExportFlag.READ_ONLY, ExportFlag.DISCARD, ExportFlag.WRITE_ZEROES])
def test_a_device_can_do_what_its_export_can_and_no_more(flag: ExportFlag) -> None:
    (device,) = configure(State(1), (ExportV1(A, flag),), NONE, 4096).state.devices
    assert (device.read_only, device.discard, device.write_zeroes) == (
        flag is ExportFlag.READ_ONLY,
        flag is ExportFlag.DISCARD,
        flag is ExportFlag.WRITE_ZEROES,
    )


def test_a_removed_export_keeps_its_device_until_nobody_uses_it_and_one_without_gets_none() -> None:
    first = configure(State(1), announced(A, B), NONE, 4096).state
    gone = tuple(ExportV1(record, ExportFlag.REMOVED) for record in (A, ExportRecord(0xC, 512, 1 << 20)))
    decision = configure(first, (*gone, ExportV1(B)), frozenset({0, 1}), 4096)
    assert [(d.record, d.removed) for d in decision.state.devices] == [(A, True), (B, False)]
    assert decision.refused == {0xA: "removed by the host", 0xC: "removed by the host"}
    assert [d.record for d in without(decision.state, 0xA).devices] == [B]


def test_a_device_is_called_as_the_host_calls_it_and_keeps_that_name_when_it_is_not_said() -> None:
    state = State(1)
    for name, label in (("disk", "disk"), ("", "disk"), ("other", "other")):
        state = configure(state, (ExportV1(A, name=name),), NONE, 4096).state
        assert [d.label for d in state.devices] == [label]


def test_an_export_left_out_is_parked_and_keeps_its_device() -> None:
    first = configure(State(1), announced(A, B), NONE, 4096).state
    second = configure(first, announced(B), frozenset({0, 1}), 4096)
    assert [d.record for d in second.state.devices] == [A, B]
    assert second.agreed == {0xB}


@pytest.mark.parametrize("other", [ExportRecord(0xA, 512, 1 << 20), ExportRecord(0xA, 4096, 1 << 21)])
def test_the_same_id_with_another_geometry_is_another_disk(other: ExportRecord) -> None:
    first = configure(State(1), announced(A), NONE, 4096).state
    second = configure(first, announced(other, B), frozenset({0}), 4096)
    assert second.agreed == {0xB}
    assert "another disk" in second.refused[0xA]
    assert second.state.devices[0] == first.devices[0]


def test_a_block_size_above_the_page_is_refused_by_name() -> None:
    big = ExportRecord(0xC, 65536, 1 << 20)
    decision = configure(State(1), announced(big, A), NONE, 4096)
    assert decision.agreed == {0xA} and "larger than a page" in decision.refused[0xC]


def test_parked_devices_count_towards_the_limit() -> None:
    full = announced(*(ExportRecord(n + 1, 512, 512) for n in range(32)))
    state = configure(State(1), full, NONE, 4096).state
    decision = configure(state, announced(ExportRecord(99, 512, 512)), NONE, 4096)
    assert decision.agreed == NONE and "32 devices" in decision.refused[99]


def test_another_identity_of_the_same_size_is_another_disk() -> None:
    first = configure(State(1), (ExportV1(A, identity=IDENTITY),), NONE, 4096).state
    second = configure(first, (ExportV1(A, identity=OTHER),), frozenset({0}), 4096)
    assert second.agreed == NONE and OTHER.hex() in second.refused[0xA]
    assert configure(first, announced(A), frozenset({0}), 4096).agreed == {0xA}, "a v0 host cannot say which disk it is"


LARGER = ExportRecord(A.export_id, A.block_size, A.size_bytes + A.block_size)


def test_the_same_disk_grown_keeps_its_device_where_the_driver_can_resize_it() -> None:
    first = configure(State(1), (ExportV1(A, identity=IDENTITY),), NONE, 4096).state
    grown = configure(first, (ExportV1(LARGER, identity=IDENTITY),), frozenset({0}), 4096, can_grow=True)
    assert grown.agreed == {0xA} and grown.refused == {}
    [device] = grown.state.devices
    assert (device.record, device.ublk_id) == (LARGER, first.devices[0].ublk_id)


def test_a_grown_disk_is_parked_with_the_reason_where_the_driver_cannot_resize_it() -> None:
    first = configure(State(1), (ExportV1(A, identity=IDENTITY),), NONE, 4096).state
    grown = configure(first, (ExportV1(LARGER, identity=IDENTITY),), frozenset({0}), 4096)
    assert grown.agreed == NONE and "this kernel cannot resize" in grown.refused[0xA]
    assert grown.state.devices == first.devices


@pytest.mark.parametrize(
    ("known", "new"),
    [
        (ExportV1(A), ExportV1(LARGER)),  # v0: nobody can say that it is the same disk
        (ExportV1(A), ExportV1(LARGER, identity=IDENTITY)),
        (ExportV1(A, identity=IDENTITY), ExportV1(LARGER)),
        (ExportV1(A, identity=IDENTITY), ExportV1(LARGER, identity=OTHER)),
        (ExportV1(LARGER, identity=IDENTITY), ExportV1(A, identity=IDENTITY)),  # shrunk
        (ExportV1(A, identity=IDENTITY), ExportV1(ExportRecord(0xA, A.block_size // 2, 1 << 40), identity=IDENTITY)),
    ],
    ids=["no identity", "none before", "none now", "another identity", "shrunk", "another block size"],
)
def test_nothing_else_that_differs_in_size_is_taken_for_growth(known: ExportV1, new: ExportV1) -> None:
    first = configure(State(1), (known,), NONE, 4096).state
    decision = configure(first, (new,), frozenset({0}), 4096, can_grow=True)
    assert decision.agreed == NONE and "another disk" in decision.refused[0xA]
    assert decision.state.devices == first.devices


def test_a_disk_that_grew_and_became_read_only_is_parked() -> None:
    first = configure(State(1), (ExportV1(A, identity=IDENTITY),), NONE, 4096).state
    read_only = ExportV1(LARGER, ExportFlag.READ_ONLY, identity=IDENTITY)
    assert "read-only" in configure(first, (read_only,), frozenset({0}), 4096, can_grow=True).refused[0xA]


def test_an_identity_said_later_is_remembered_from_then_on() -> None:
    unknown = configure(State(1), announced(A), NONE, 4096).state
    known = configure(unknown, (ExportV1(A, identity=IDENTITY),), frozenset({0}), 4096).state
    assert configure(known, (ExportV1(A, identity=OTHER),), frozenset({0}), 4096).agreed == NONE


def test_a_read_only_export_is_a_read_only_device_and_never_stands_for_a_writable_one() -> None:
    read_only = (ExportV1(A, ExportFlag.READ_ONLY),)
    assert configure(State(1), read_only, NONE, 4096).state.devices[0].read_only
    writable = configure(State(1), announced(A), NONE, 4096).state
    decision = configure(writable, read_only, frozenset({0}), 4096)
    assert decision.agreed == NONE and "read-only" in decision.refused[0xA]


def test_both_wires_announce_the_same_exports() -> None:
    v1 = ConfigV1(1, bytes(16), (ExportV1(A, name="root"), ExportV1(B)))
    assert [e.record for e in exports_of(v1.encode(), 1)] == [
        e.record for e in exports_of(ConfigExports((A, B)).encode(), 0)
    ]
    with pytest.raises(WireError, match="version 2"):
        exports_of(v1.encode(), 2)


def test_state_survives_the_file(tmp_path: Path) -> None:
    devices = (Device("a", A, 0), Device("b", B, 7, read_only=True, identity=IDENTITY.hex(), label="root"))
    state = State(0xFEDC, devices, (0xA,), "default")
    save(tmp_path / "state.json", state)
    assert load(tmp_path / "state.json", "default") == state
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_state_file_of_the_first_releases_describes_writable_devices() -> None:
    fields = json.loads(State(1, (Device("a", A, 0),)).encode())
    for name in ("read_only", "identity", "label"):
        del fields["devices"][0][name]
    assert State.decode(json.dumps(fields).encode()).devices == (Device("a", A, 0),)


def test_no_state_file_is_no_state(tmp_path: Path) -> None:
    assert load(tmp_path / "state.json", "default") is None


def test_the_state_file_of_another_instance_is_refused_and_named(tmp_path: Path) -> None:
    """Its devices are that instance's, and a host would take two gadgets for one by its session id."""
    save(tmp_path / "state.json", State(0xFEDC, (Device("a", A, 0),), instance="left"))
    with pytest.raises(WireError, match="of instance left, not right"):
        load(tmp_path / "state.json", "right")


def test_a_state_file_that_does_not_say_whose_it_is_is_ours(tmp_path: Path) -> None:
    """Of the first releases."""
    fields = json.loads(State(1, (Device("a", A, 0),)).encode())
    del fields["instance"]
    (tmp_path / "state.json").write_text(json.dumps(fields))
    assert load(tmp_path / "state.json", "right") == State(1, (Device("a", A, 0),), instance="right")


@given(cut=st.integers(0, 200))
def test_a_torn_state_file_is_one_error(cut: int) -> None:
    data = State(0xFEDC, (Device("a", A, 0),)).encode()
    if cut >= len(data.rstrip()):
        return
    with pytest.raises(WireError, match="torn"):
        State.decode(data[:cut])


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_state_or_the_one_error(data: bytes) -> None:
    with pytest.raises(WireError):
        State.decode(data)


def test_another_version_is_named() -> None:
    data = State(1).encode().replace(b'"version": 1', b'"version": 9')
    with pytest.raises(WireError, match="of version 9"):
        State.decode(data)


def test_two_devices_of_one_number_are_refused() -> None:
    with pytest.raises(WireError, match="twice"):
        State.decode(State(1, (Device("a", A, 0), Device("b", B, 0))).encode())


def test_devices_the_state_file_lost_are_taken_over_and_told() -> None:
    state, notices = adopt(State(1), (Device("a", A, 0), Device("b", B, 3)))
    assert [(d.record, d.ublk_id) for d in state.devices] == [(A, 0), (B, 3)]
    assert len(notices) == 2 and all("taken over" in notice for notice in notices)


def test_devices_the_state_file_knows_are_nothing_new() -> None:
    state = State(1, (Device("a", A, 0),))
    assert adopt(state, (Device("a", A, 0),)) == (state, [])


def test_the_kernel_is_right_about_the_number_of_a_device() -> None:
    state, notices = adopt(State(1, (Device("a", A, 0),)), (Device("a", A, 5),))
    assert [d.ublk_id for d in state.devices] == [5] and len(notices) == 1


def test_a_second_device_of_an_export_is_never_used_and_always_told() -> None:
    state, notices = adopt(State(1, (Device("a", A, 0),)), (Device("a", A, 0), Device("a", A, 5)))
    assert [d.ublk_id for d in state.devices] == [0]
    assert "second device" in notices[0]


def test_a_device_not_made_yet_stays_in_the_state() -> None:
    state = State(1, (Device("a", A, 0),))
    assert adopt(state, ()) == (state, [])
