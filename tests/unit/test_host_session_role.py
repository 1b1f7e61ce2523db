"""The host's session role with a usb that is played by the test: what it plans, and what may not displace it."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from bus.envelope import Kind
from bus.loop import Loop
from common.wire import Control, Ident
from host.session import role as module
from host.session.core import State
from host.session.finder import Gadget
from host.session.role import Session


class Played:
    """What Role is to a session, and usb's side of its lane."""

    def __init__(self) -> None:
        self.loop, self.told = Loop(), list[dict[str, Any]]()
        self.runtime: Any = SimpleNamespace(root="/nonexistent")
        self.methods: dict[str, Any] = {}
        self.log = SimpleNamespace(info=lambda text: None, warning=lambda text: None, debug=lambda text: None)
        self.status: Any = None

    def connect(self, *lane: Any) -> "Played":
        return self

    def send(self, kind: Kind, note: dict[str, Any]) -> bool:
        self.told.append(note)
        return True

    def method(self, name: str, handler: Any) -> None:
        self.methods[name] = handler

    def ready(self) -> None: ...

    def on_watchdog(self, introduce: Any, note: Any) -> None:
        self.introduce = introduce

    def tell_watchdog(self, note: dict[str, Any]) -> None:
        self.wanted = [role["role"] for role in note["roles"]]


EXPORT = {"export_id": 1, "block_size": 512, "size_bytes": 1 << 20, "name": "disk", "path": "/x", "read_only": False}


def link(state: str) -> dict[str, Any]:
    fields = {"bus": 1, "address": 2, "version": 0, "epoch": 0, "session_id": 0, "reason": "played"}
    return {"note": "link", "state": state, **fields}


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    searches: list[object] = []

    def find(serial: str | None) -> list[Gadget]:
        searches.append(serial)
        return [Gadget(1, 2, "s", "high")]

    monkeypatch.setattr(module, "find", find)
    monkeypatch.setattr(module, "Uevents", lambda: SimpleNamespace(fd=None))
    return searches


def test_an_answer_that_crosses_the_loss_of_the_device_does_not_displace_the_search(searches: list[object]) -> None:
    """Found by the simulator, seed 5299: nobody searched any more, and the I/O stayed parked for ever."""
    played = Played()
    session = Session(played, [EXPORT], None)  # type: ignore[arg-type]

    def hears(note: dict[str, Any]) -> None:
        session._from_usb(Kind.NOTE, note)

    def answers(data: bytes = b"", error: int = 0) -> None:
        hears({"note": "controlled", "serial": played.told[-1]["serial"], "error": error, "data": data})

    session._usb_arrived(1)
    hears(link("detached"))
    hears(link("attached"))
    answers(Ident().encode())
    answers()
    assert session._core.state is State.SETTLING and played.told[-1]["request"] == Control.STATUS
    before = len(searches)
    hears(link("detached"))
    answers(error=errno.ENODEV)
    played.loop.every(0.02, lambda: played.loop.stop() if len(searches) > before else None)
    played.loop.after(5, lambda: played.loop.stop(1))
    assert played.loop.run() == 0, "nobody looks for the device"
