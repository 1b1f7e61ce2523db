"""`replug host eject`: the gadget sends no more, has every answer, the sources flush, and the books are closed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.envelope import Kind
from bus.runtime import Runtime, Side
from common.errors import Refused
from common.ledger import LEDGER_BYTES, Ledger
from common.wire import Control, ExportRecord, Ident, Op, Response, Status
from common.wire_v1 import ConfigV1, ControlV1, ExportFlag, ExportV1
from gadget.session import parking
from gadget.usb.core import UsbCore
from gadget.usb.handshake import Handshake
from gadget.usb.link import Event
from gadget.usb.transport import Setup
from host.session import role as module
from host.session.core import State
from host.session.eject import Ejection, load_ejection, save_ejection
from host.session.finder import Gadget
from host.session.role import Session
from tests.unit.test_host_session_role import Played

A, B = ExportRecord(0xA, 4096, 1 << 20), ExportRecord(0xB, 4096, 1 << 20)
BOOT, NEXT_BOOT = bytes(range(16)), bytes(range(1, 17))
EJECTED, FLUSHED = ExportFlag.EJECTED, ExportFlag.EJECTED | ExportFlag.FLUSHED


# -- the gadget ------------------------------------------------------------------------------------------------------
@pytest.fixture
def ledger() -> Ledger:
    return Ledger(bytearray(LEDGER_BYTES))


@pytest.fixture
def core(ledger: Ledger) -> UsbCore:
    """Online with export A, and one write on the wire."""
    core = UsbCore(lambda export_id: ledger)
    core.queue_arrived("queue.a", 1, A, 16, 128 * 1024)
    core.v0, core.host_boot = False, BOOT
    core.on(Event.ENABLED)
    core.on(Event.CONFIGURED)
    core.agree(frozenset({0xA}))
    core.on(Event.AGREED)
    core.ask("queue.a", 1, [[1, int(Op.WRITE), 1, 0, 1, 0]])
    return core


def test_nothing_of_an_ejected_export_is_sent_and_what_is_on_the_wire_is_still_answered(
    core: UsbCore, ledger: Ledger
) -> None:
    (send,) = core.dispatch()
    core.ask("queue.a", 1, [[2, int(Op.WRITE), 2, 0, 1, 0]])
    core.eject(frozenset({0xA}), frozenset())
    assert list(core.dispatch()) == [] and core.on_wire(frozenset({0xA}))
    core.left(send.pending, core.epoch)
    core.answered(Response.to(send.pending.request, 0))
    assert not core.on_wire(frozenset({0xA})) and ledger.unflushed == 4096


def test_flushed_covers_what_was_answered(core: UsbCore, ledger: Ledger) -> None:
    ledger.wrote(4096, BOOT)
    core.eject(frozenset({0xA}), frozenset({0xA}))
    assert ledger.unflushed == 0


def test_a_flush_cannot_cover_what_is_still_on_the_wire_or_was_acknowledged_by_another_boot(
    core: UsbCore, ledger: Ledger
) -> None:
    ledger.wrote(4096, BOOT)
    (send,) = core.dispatch()
    core.eject(frozenset({0xA}), frozenset({0xA}))
    assert ledger.unflushed == 4096
    core.left(send.pending, core.epoch)
    core.answered(Response.to(send.pending.request, 0))
    core.host_boot = NEXT_BOOT
    core.eject(frozenset({0xA}), frozenset({0xA}))
    assert ledger.unflushed == 8192


def test_status_says_active_only_when_nothing_of_an_ejected_export_is_on_the_wire() -> None:
    handshake, replies = Handshake(), list[bytes]()
    handshake.session_id, handshake.active = 7, True
    setup: Any = SimpleNamespace(request_type=0xA1, request=int(Control.STATUS), length=16, reply=replies.append)
    handshake.draining = lambda: True
    handshake.answer(_typed(setup))
    handshake.draining = lambda: False
    handshake.answer(_typed(setup))
    assert [Status.decode(reply).active for reply in replies] == [False, True]


def _typed(setup: Any) -> Setup:
    return setup  # type: ignore[no-any-return]


def test_the_gadget_says_that_the_host_has_ejected_it() -> None:
    reasons = parking.ejected((ExportV1(A, EJECTED), ExportV1(B), ExportV1(ExportRecord(0xC, 512, 512), FLUSHED)))
    assert reasons == {
        0xA: "ejected at the host, which flushes it now",
        0xC: "ejected at the host, everything is flushed there",
    }


# -- the host --------------------------------------------------------------------------------------------------------
def source(export_id: int, block_size: int, size_bytes: int, name: str, read_only: bool) -> dict[str, Any]:
    fields = {"export_id": export_id, "block_size": block_size, "size_bytes": size_bytes}
    return {**fields, "name": name, "path": f"/{name}", "read_only": read_only}


class Bench:
    """A session role, and the usb and gadget that the test plays for it."""

    def __init__(self, runtime: Runtime, version: int = 1) -> None:
        self.played, self.version = Played(), version
        self.played.runtime = runtime
        exports = [[0xA, 4096, 1 << 20, "a", False], [0xB, 4096, 1 << 20, "b", False]]
        self.session = Session(self.played, [source(*export) for export in exports], None)  # type: ignore[arg-type]
        self.session._usb_arrived(1)

    def call(self, name: str, **arguments: Any) -> Any:
        return self.played.methods[name](arguments)

    def hears(self, state: str, epoch: int = 5, session_id: int = 0) -> None:
        here = {"bus": 1, "address": 2, "version": self.version, "epoch": epoch if self.version else 0}
        note = {"note": "link", "state": state, **here, "session_id": session_id, "reason": "played"}
        self.session._from_usb(Kind.NOTE, note)

    def answers(self, data: bytes = b"") -> None:
        note = {"note": "controlled", "serial": self.played.told[-1]["serial"], "error": 0, "data": data}
        self.session._from_usb(Kind.NOTE, note)

    def online(self) -> "Bench":
        self.hears("detached")
        self.hears("attached")
        self.answers(Ident().encode())
        self.settle()
        assert self.session._core.state is State.ONLINE
        return self

    def settle(self) -> list[ExportFlag]:
        """Take the CONFIG that was sent, and say that it is in force. The flags of its exports."""
        sent = self.played.told[-1]
        assert sent["request"] == (ControlV1.CONFIG if self.version else Control.CONFIG_EXPORTS)
        self.answers()
        assert self.told is False
        self.answers(Status(True, 2, 9).encode())
        return [export.flags & FLUSHED for export in ConfigV1.decode(sent["data"]).exports] if self.version else []

    @property
    def told(self) -> bool:
        return bool(self.session._status()["ejection_told"])


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(module, "find", lambda serial: [Gadget(1, 2, "s", "high")])
    monkeypatch.setattr(module, "Uevents", lambda: SimpleNamespace(fd=None))
    runtime = Runtime(Side.HOST, base=tmp_path)
    runtime.create()
    return runtime


def test_the_gadget_is_told_first_to_send_no_more_and_then_that_all_is_flushed(runtime: Runtime) -> None:
    bench = Bench(runtime).online()
    assert bench.call("eject") == ["a", "b"] and not bench.told
    assert bench.settle() == [EJECTED, EJECTED] and bench.told
    bench.call("flushed", names=["a", "b"])
    assert not bench.told
    assert bench.settle() == [FLUSHED, FLUSHED] and bench.told


def test_one_export_is_ejected_while_the_other_is_served(runtime: Runtime) -> None:
    bench = Bench(runtime).online()
    assert bench.call("eject", names=["b"]) == ["b"]
    assert bench.settle() == [ExportFlag(0), EJECTED]
    states = {export["name"]: export["state"] for export in bench.session._status()["exports"]}
    assert states == {"a": "live", "b": "parked"}


def test_an_export_that_was_not_ejected_is_never_announced_as_flushed(runtime: Runtime) -> None:
    bench = Bench(runtime).online()
    bench.call("eject", names=["b"])
    bench.settle()
    bench.call("flushed", names=["a", "b"])
    assert bench.settle() == [ExportFlag(0), FLUSHED]


def test_a_name_that_is_not_served_is_refused_and_changes_nothing(runtime: Runtime) -> None:
    bench = Bench(runtime).online()
    with pytest.raises(Refused, match="c: not served here: there are: a, b"):
        bench.call("eject", names=["a", "c"])
    assert load_ejection(runtime) == Ejection()


def test_a_successor_of_the_session_says_it_again(runtime: Runtime) -> None:
    Bench(runtime).online().call("eject")
    successor = Bench(runtime)
    successor.hears("attached", session_id=9)
    assert not successor.told, "whether its predecessor has said it nobody knows"
    assert successor.settle() == [EJECTED, EJECTED] and successor.told


def test_without_a_gadget_nobody_has_to_be_told(runtime: Runtime) -> None:
    bench = Bench(runtime)
    bench.session._search = lambda: None  # type: ignore[method-assign]
    bench.hears("detached")
    bench.call("eject")
    assert bench.told


def test_a_v0_gadget_loses_its_link_when_nothing_is_left_and_is_not_attached_again(runtime: Runtime) -> None:
    bench = Bench(runtime, version=0).online()
    bench.call("eject")
    assert bench.played.told[-1]["note"] == "detach" and not bench.told
    bench.hears("detached")
    bench.session._search()
    assert bench.told and bench.played.told[-1]["note"] == "detach"


def test_an_ejection_survives_its_file_and_a_senseless_file_ejects_nothing(runtime: Runtime) -> None:
    save_ejection(runtime, Ejection(frozenset({1, 2}), frozenset({2})))
    assert load_ejection(runtime) == Ejection(frozenset({1, 2}), frozenset({2}))
    (runtime.root / "ejected.json").write_text('{"ejected": [1], "flushed": [1, 2]}')
    assert load_ejection(runtime) == Ejection(frozenset({1}), frozenset({1}))
    (runtime.root / "ejected.json").write_text("{")
    assert load_ejection(runtime) == Ejection()
