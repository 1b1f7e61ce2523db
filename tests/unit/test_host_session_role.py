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
from tools.cli.status import export_cells


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
    monkeypatch.setattr(module, "Hold", lambda: SimpleNamespace(take=lambda gadget: True))
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


class Several:
    """Three gadgets, of which other replugs hold some; a usb that cannot attach those in `closed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: set[int], closed: set[int]) -> None:
        gadgets = [Gadget(1, address, f"s{address}", "high") for address in (2, 3, 4)]
        monkeypatch.setattr(module, "find", lambda wanted: gadgets)
        monkeypatch.setattr(module, "Uevents", lambda: SimpleNamespace(fd=None))
        monkeypatch.setattr(module, "Hold", lambda: SimpleNamespace(take=lambda gadget: gadget.address not in held))
        monkeypatch.setattr(module.limits, "RETRY_S", 0.0)
        monkeypatch.setattr(module.limits, "SEARCH_S", 0.0)
        self.played, self.closed = Played(), closed
        self.session = Session(self.played, [EXPORT], None)  # type: ignore[arg-type]
        self.session._usb_arrived(1)
        self.hears(link("detached"))

    def hears(self, note: dict[str, Any]) -> None:
        self.session._from_usb(Kind.NOTE, note)

    def attempts(self, count: int) -> list[int]:
        """Addresses of the first attempts to attach; each that is closed is refused by usb."""
        tried: list[int] = []
        for _ in range(10 * count):
            attached = [note["address"] for note in self.played.told if note["note"] == "attach"]
            if len(attached) > len(tried):
                tried.append(attached[-1])
                if len(tried) == count or tried[-1] not in self.closed:
                    break
                self.hears(link("detached"))
            self.played.loop.after(0.001, self.played.loop.stop)
            self.played.loop.run()
            self.played.loop._code = None
        return tried


def test_a_gadget_that_another_replug_holds_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Several(monkeypatch, held={2}, closed=set()).attempts(1) == [3]


def test_where_all_are_held_it_waits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Several(monkeypatch, held={2, 3, 4}, closed=set())
    assert several.attempts(1) == []
    assert several.session._status()["link"]["reason"] == "held by another replug: s2, s3, s4"


def test_a_gadget_that_cannot_be_attached_does_not_keep_the_others_from_being_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Several(monkeypatch, held=set(), closed={2, 3}).attempts(3) == [2, 3, 4]


def test_what_could_not_be_attached_is_tried_again_when_all_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Several(monkeypatch, held=set(), closed={2, 3, 4}).attempts(6) == [2, 3, 4, 2, 3, 4]


def test_status_says_what_is_served_as_the_command_line_takes_it(searches: list[object]) -> None:
    session = Session(Played(), [{**EXPORT, "path": "random:7?size=1M"}], None)  # type: ignore[arg-type]
    [export] = session._status()["exports"]
    assert export["source"] == "random:7?size=1M"
    assert export_cells(export)[1] == "random:7?size=1M"
