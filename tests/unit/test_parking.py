"""What holds an export back although its host is there: a rebooted host, the operator's word, a limit."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WireError
from common.ledger import LEDGER_BYTES, NO_BOOT, Ledger
from common.wire import ConfigExports, ExportRecord
from common.wire_v1 import ConfigV1, ExportV1
from gadget.session import parking
from gadget.session.core import configure
from gadget.session.parking import NOTHING, Wish
from gadget.session.state import State

A, B = ExportRecord(0xA, 4096, 1 << 20), ExportRecord(0xB, 512, 1 << 20)
BOOT, NEXT_BOOT = bytes(range(16)), bytes(range(1, 17))


@pytest.fixture
def ledgers() -> dict[int, Ledger]:
    return {export_id: Ledger(bytearray(LEDGER_BYTES)) for export_id in (0xA, 0xB)}


def held(ledgers: dict[int, Ledger], boot: bytes, wishes: parking.Wishes | None = None) -> dict[int, str]:
    return parking.rebooted([0xA, 0xB], boot, ledgers.__getitem__, wishes or {})


def test_a_host_that_rebooted_over_unflushed_writes_parks_that_export_alone(ledgers: dict[int, Ledger]) -> None:
    ledgers[0xA].wrote(8192, BOOT)
    assert held(ledgers, BOOT) == {}, "its source was restarted, its page cache was not"
    reasons = held(ledgers, NEXT_BOOT)
    assert reasons.keys() == {0xA}
    assert "has rebooted over 8.0K acknowledged and not flushed" in reasons[0xA]


def test_everything_flushed_is_there_after_any_reboot(ledgers: dict[int, Ledger]) -> None:
    ledgers[0xA].wrote(8192, BOOT)
    ledgers[0xA].flushed(8192)
    assert held(ledgers, NEXT_BOOT) == {}


def test_where_the_ledger_was_lost_any_host_may_have_rebooted(ledgers: dict[int, Ledger]) -> None:
    ledgers[0xA].distrust()
    reasons = held(ledgers, BOOT)
    assert reasons.keys() == {0xA} and reasons[0xA].startswith("the runtime directory was lost")
    assert held(ledgers, BOOT, {0xA: Wish(accepted=BOOT.hex())}) == {} == held(ledgers, NO_BOOT)


def test_a_v0_host_cannot_tell(ledgers: dict[int, Ledger]) -> None:
    ledgers[0xA].wrote(8192, BOOT)
    assert held(ledgers, NO_BOOT) == {}


def test_what_the_operator_accepted_holds_for_that_boot_only(ledgers: dict[int, Ledger]) -> None:
    ledgers[0xA].wrote(8192, BOOT)
    wishes = {0xA: Wish(accepted=NEXT_BOOT.hex())}
    assert held(ledgers, NEXT_BOOT, wishes) == {}
    assert held(ledgers, bytes(range(2, 18)), wishes).keys() == {0xA}


def test_an_export_held_back_keeps_its_device_and_is_not_in_force() -> None:
    exports = (ExportV1(A), ExportV1(B))
    decision = parking.withhold(configure(State(1), exports, frozenset(), 4096), {0xA: "why", 0xC: "not announced"})
    assert decision.agreed == {0xB} and decision.refused == {0xA: "why"}
    assert [d.record for d in decision.state.devices] == [A, B] and decision.state.configured == (0xB,)


def test_the_boot_id_is_that_of_v1() -> None:
    assert parking.boot_of(ConfigV1(1, BOOT, (ExportV1(A),)).encode(), 1) == BOOT
    assert parking.boot_of(ConfigExports((A,)).encode(), 0) == NO_BOOT


def test_an_export_fails_when_it_was_parked_for_its_limit_and_not_before() -> None:
    wish = parking.tick(Wish(limit_s=30), True, 100.0)
    assert parking.tick(wish, True, 129.9) == wish
    failed = parking.tick(wish, True, 130.0)
    assert failed.failed == "parked for longer than its limit of 30 s"
    assert parking.tick(failed, False, 131.0) == failed, "a device that has ended does not come back by itself"


def test_the_time_parked_starts_again_with_each_parking() -> None:
    wish = parking.tick(Wish(limit_s=30), True, 100.0)
    wish = parking.tick(wish, False, 110.0)
    wish = parking.tick(wish, True, 120.0)
    assert not parking.tick(wish, True, 149.0).failed


def test_without_a_limit_it_waits() -> None:
    assert parking.tick(NOTHING, True, 1e9) == NOTHING


def test_wishes_survive_the_file_and_nothing_wished_leaves_nothing() -> None:
    wishes = {0xA: Wish(BOOT.hex(), 30.0, 12.5, "why"), 0xB: NOTHING}
    assert parking.decode(parking.encode(wishes)) == {0xA: wishes[0xA]}


@given(cut=st.integers(0, 150))
def test_a_torn_file_is_one_error(cut: int) -> None:
    data = parking.encode({0xA: Wish(limit_s=1.0)})
    if cut >= len(data.rstrip()):
        return
    with pytest.raises(WireError, match="torn"):
        parking.decode(data[:cut])


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_wishes_or_the_one_error(data: bytes) -> None:
    with pytest.raises(WireError):
        parking.decode(data)
