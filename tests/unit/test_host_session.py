"""The host's session: the whole table, what STATUS answers mean, and which devices in sysfs are gadgets."""

from pathlib import Path

import pytest

from common import limits
from common.errors import Illegal
from common.wire import Ident, Status
from host.session.core import TABLE, Event, SessionCore, State, Step
from host.session.finder import Gadget, find

HANDSHAKE = [
    (Event.USB_NEW, State.NO_USB, ()),
    (Event.DETACHED, State.SEARCHING, (Step.SEARCH,)),
    (Event.FOUND, State.ATTACHING, (Step.ATTACH,)),
    (Event.ATTACHED, State.IDENT, (Step.ASK_IDENT,)),
    (Event.IDENTIFIED, State.CONFIG, (Step.SEND_CONFIG,)),
    (Event.CONFIGURED, State.SETTLING, (Step.ASK_STATUS,)),
    (Event.INACTIVE, State.SETTLING, ()),
    (Event.ACTIVE, State.ONLINE, (Step.TELL_ONLINE, Step.ASK_STATUS)),
    (Event.ACTIVE, State.ONLINE, ()),
]


def session_in(state: State) -> SessionCore:
    session = SessionCore(1)
    session.state = state
    return session


def test_hand_shake_goes_from_nothing_to_online() -> None:
    session = SessionCore(1)
    for event, state, steps in HANDSHAKE:
        assert session.on(event) == steps
        assert session.state is state


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_is_in_the_table_or_raises_and_changes_nothing(state: State, event: Event) -> None:
    session = session_in(state)
    if (state, event) in TABLE:
        assert session.on(event) == TABLE[state, event][1]
        assert session.state is TABLE[state, event][0]
    else:
        with pytest.raises(Illegal, match=rf"Event\.{event.name} in State\.{state.name}"):
            session.on(event)
        assert session.state is state


@pytest.mark.parametrize("state", State)
def test_new_usb_process_starts_over_from_anywhere(state: State) -> None:
    session = session_in(state)
    session.session_id = 5
    assert session.on(Event.USB_NEW) == ()
    assert (session.state, session.session_id) == (State.NO_USB, 0)


@pytest.mark.parametrize("state", [s for s in State if s not in (State.NO_USB,)])
def test_lost_device_is_searched_for_from_anywhere(state: State) -> None:
    session = session_in(state)
    session.on(Event.DETACHED)
    assert session.state is State.SEARCHING


def test_successor_of_a_session_that_was_online_asks_status_and_configures_nothing() -> None:
    session = SessionCore(1)
    session.on(Event.USB_NEW)
    assert session.link(0, 0, 0xABC) is Event.ATTACHED_ONLINE
    assert session.on(Event.ATTACHED_ONLINE) == (Step.ASK_STATUS,)
    assert session.state is State.ONLINE
    assert session.status(Status(True, 1, 0xABC)).event is Event.ACTIVE
    assert session.status(Status(True, 1, 0xDEF)).event is Event.CHANGED


def test_successor_of_a_session_that_died_in_the_hand_shake_starts_over() -> None:
    session = SessionCore(1)
    session.on(Event.USB_NEW)
    assert session.link(0, 0, 0) is Event.ATTACHED
    assert session.on(Event.ATTACHED) == (Step.DETACH,)


def test_with_a_v1_gadget_it_announces_once_more_instead() -> None:
    session = SessionCore(1)
    session.on(Event.USB_NEW)
    assert session.link(1, 7, 0) is Event.RESTARTED
    assert session.on(Event.RESTARTED) == (Step.SEND_CONFIG,)


@pytest.mark.parametrize("state", [State.IDENT, State.CONFIG, State.SETTLING, State.ONLINE, State.RESTARTING])
def test_a_new_epoch_is_announced_to_from_wherever_the_session_is(state: State) -> None:
    session = session_in(state)
    session.version, session.epoch = 1, 7
    assert session.link(1, 8, 0) is Event.RESTARTED
    assert session.on(Event.RESTARTED) == (Step.SEND_CONFIG,)
    assert session.link(1, 8, 0) is Event.ATTACHED, "the same epoch twice is nothing new"


def test_a_v1_gadget_that_forgot_our_exports_gets_a_new_epoch_and_stays_attached() -> None:
    session = session_in(State.ONLINE)
    session.session_id, session.version = 0x11, 1
    assert session.status(Status(False, 0, 0x11)).event is Event.FORGOTTEN
    assert session.on(Event.FORGOTTEN) == (Step.RESTART,)
    assert session.on(Event.RESTARTED) == (Step.SEND_CONFIG,)


def test_changed_session_id_is_told_with_both() -> None:
    session = session_in(State.ONLINE)
    session.session_id = 0x11
    verdict = session.status(Status(True, 1, 0x22))
    assert verdict.event is Event.CHANGED
    assert verdict.why == "session 0x0000000000000011 became 0x0000000000000022"


def test_another_session_id_after_a_reconnect_is_accepted_and_told() -> None:
    session = session_in(State.SETTLING)
    session.last_session_id = 0x11
    verdict = session.status(Status(True, 1, 0x22))
    assert verdict.event is Event.ACTIVE
    assert "before it was 0x0000000000000011" in verdict.why


def test_five_misses_in_a_row_end_the_session_and_four_do_not() -> None:
    session = session_in(State.ONLINE)
    assert [session.missed() for _ in range(limits.STATUS_MISSES - 1)] == [None] * 4
    session.status(Status(True, 1, 0x11))
    assert [session.missed() for _ in range(limits.STATUS_MISSES - 1)] == [None] * 4
    verdict = session.missed()
    assert verdict is not None and verdict.event is Event.MISSED
    assert verdict.why.startswith("5 STATUS in a row without an answer")


def test_stalled_status_while_the_gadget_makes_its_devices_is_no_miss() -> None:
    session = session_in(State.SETTLING)
    assert [session.missed() for _ in range(50)] == [None] * 50


def test_gadget_that_forgot_our_exports_is_started_over() -> None:
    session = session_in(State.ONLINE)
    session.session_id = 0x11
    assert session.status(Status(False, 0, 0x11)).event is Event.INACTIVE
    assert session.on(Event.INACTIVE) == (Step.DETACH,)


def test_gadget_of_another_major_version_is_refused() -> None:
    session = session_in(State.IDENT)
    assert session.ident(Ident(0, 7)).event is Event.IDENTIFIED
    verdict = session.ident(Ident(1, 0))
    assert verdict.event is Event.FAILED and verdict.why.startswith("the gadget speaks version 1.0")


# -- sysfs -------------------------------------------------------------------------------------------------------
def device(root: Path, name: str, address: int, serial: str | None, kind: tuple[str, str, str]) -> None:
    (root / name).mkdir()
    for file, text in (("busnum", "2"), ("devnum", str(address)), ("speed", "480")):
        (root / name / file).write_text(text + "\n")
    if serial is not None:
        (root / name / "serial").write_text(serial + "\n")
    interface = root / f"{name}:1.0"
    interface.mkdir()
    for file, text in zip(("Class", "SubClass", "Protocol"), kind, strict=True):
        (interface / f"bInterface{file}").write_text(text + "\n")


SMOO = ("ff", "53", "4d")


def test_only_interfaces_of_smoo_s_class_are_gadgets(tmp_path: Path) -> None:
    device(tmp_path, "2-1", 5, "one", SMOO)
    device(tmp_path, "2-2", 6, "stick", ("08", "06", "50"))
    device(tmp_path, "2-3", 4, None, SMOO)
    assert find(None, tmp_path) == [Gadget(2, 4, "", "high"), Gadget(2, 5, "one", "high")]


def shaped(root: Path, name: str, *endpoints: tuple[str, str]) -> None:
    """A device that calls itself fastboot, with these endpoints as sysfs shows them."""
    device(root, name, int(name[-1]), name, ("ff", "42", "03"))
    for number, (direction, kind) in enumerate(endpoints, 1):
        place = root / f"{name}:1.0" / f"ep_{number | (0x80 if direction == 'in' else 0):02x}"
        place.mkdir()
        (place / "direction").write_text(direction + "\n")
        (place / "type").write_text(kind + "\n")


def test_a_fastboot_is_looked_at_only_if_its_endpoints_are_our_four(tmp_path: Path) -> None:
    """A phone in its boot loader has two of bulk, and is never opened."""
    bulk, interrupt = [("in", "Bulk"), ("out", "Bulk")], [("out", "Interrupt"), ("in", "Interrupt")]
    shaped(tmp_path, "2-1", *bulk)
    shaped(tmp_path, "2-2", *interrupt, *bulk)
    shaped(tmp_path, "2-3", *interrupt, *bulk, ("in", "Isoc"))
    shaped(tmp_path, "2-4", *bulk, *bulk)
    assert [gadget.serial for gadget in find(None, tmp_path)] == ["2-2"]


def test_a_serial_number_cannot_write_on_a_terminal(tmp_path: Path) -> None:
    device(tmp_path, "2-1", 5, "one\x1b[2J\nreplug: all is well", SMOO)
    assert [gadget.serial for gadget in find(None, tmp_path)] == ["one?[2J?replug: all is well"]


def test_gadget_is_chosen_by_its_serial_number(tmp_path: Path) -> None:
    device(tmp_path, "2-1", 5, "one", SMOO)
    device(tmp_path, "2-2", 6, "two", SMOO)
    assert find("two", tmp_path) == [Gadget(2, 6, "two", "high")]
    assert find("three", tmp_path) == []


def test_device_that_goes_while_it_is_looked_at_is_left_out(tmp_path: Path) -> None:
    device(tmp_path, "2-1", 5, "one", SMOO)
    (tmp_path / "2-1" / "devnum").unlink()
    (tmp_path / "2-2:1.0").mkdir()
    assert find(None, tmp_path) == []


def test_machine_without_usb_has_no_gadgets(tmp_path: Path) -> None:
    assert find(None, tmp_path / "none") == []
