"""What is inside envelopes, into the roles' handlers: any other value at any place of an honest body.

Both sides run in the simulator; of each message that a role takes, one in a few has another body than was sent. A role
may count it and drop it, or die of it crash-only (Gone, an errno); any other exception is a fault. What the users of
the disks then read is not judged: a process of one's own user that lies could as well write to the disk.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from bus.control import ControlServer
from bus.envelope import Envelope, Kind
from common import limits
from common.errors import Refused
from tests.fuzz.hurt import places, put
from tests.sim.roles import SimRole
from tests.sim.run import Run
from tests.sim.world import Violation

SEEDS = range(60)
GROUPS = 2
LONG_S = 8.0  # of virtual time for each seed: some lies make a side wait for ever
HEARD = (
    "gadget usb: hello",
    "gadget usb: requests",
    "gadget usb: note session",
    "gadget session: note link",
    "gadget session: note config_exports",
    "gadget queue: completions",
    "host usb: hello",
    "host usb: note attach",
    "host usb: note control",
    "host usb: note online",
    "host usb: completions",
    "host session: note link",
    "host session: note controlled",
    "host source: note arena",
    "host source: requests",
)
"""What roles hear. Each seed hurts one of these half of the time, and of the others one in SELDOM."""
SELDOM = 60
JUNK: list[Any] = [
    None, True, 0, 1, -1, 7, 1 << 31, 1 << 40, 1 << 62, -(1 << 63), (1 << 64) - 1, 0.5, float("inf"), float("nan"),
    "", "a", "queue.a1", "\x1b[2J\n", "x" * 5000, b"", b"\xff" * 40, [], [[]], [1, 2], [None] * 300, {}, {"note": 5},
    {"note": "link"}, {"a": {"b": []}}, [[[[[[]]]]]],
]  # fmt: skip


def other(rng: random.Random, body: Any) -> Any:
    """`body` with one thing in it replaced, dropped or added."""
    path = rng.choice(places(body))
    if path and rng.random() < 0.2:
        return dropped(body, path)
    return put(body, path, rng.choice(JUNK))


def dropped(body: Any, path: tuple[Any, ...]) -> Any:
    if len(path) > 1:
        return put(body, path[:1], dropped(body[path[0]], path[1:]))
    copy = dict(body) if isinstance(body, dict) else list(body)
    del copy[path[0]]
    return copy


def told(kind: Kind, body: Any) -> str:
    return f"{kind} {body.get('note', '')}".strip() if isinstance(body, dict) else str(kind)


class Liar:
    """In the place of Envelope.decode. The roles' own words come through it, each to its reader."""

    def __init__(self, seed: int, run: Run, hurt: Counter[str]) -> None:
        self._rng, self._run, self._hurt = random.Random(seed), run, hurt
        self._aim = HEARD[seed % len(HEARD)]
        self._decode = Envelope.decode

    def decode(self, data: bytes) -> Envelope:
        envelope = self._decode(data)
        process = self._run.current_process
        what = f"{process.side} {process.role.split('.')[0]}: {told(envelope.kind, envelope.body)}"
        if envelope.kind is Kind.WELCOME or self._rng.randrange(2 if what == self._aim else SELDOM):
            return envelope
        self._hurt[what] += 1
        return replace(envelope, body=other(self._rng, envelope.body))

    def body_of(self, data: bytes, start: int) -> Any:
        """In the place of bus.envelope's: a lane that knows a message's head reads its body alone."""
        return self.decode(data).body


def lie(seed: int, hurt: Counter[str]) -> None:
    run = Run(seed, requests=40, faults=2)
    liar = Liar(seed, run, hurt)
    run.world.after(LONG_S, lambda: run.world.violate("long enough"))
    with patch.object(Envelope, "decode", liar.decode), patch("bus.lane.body_of", liar.body_of):
        try:
            run.execute()
        except Violation as violation:
            text = str(violation)
            assert " broke: " not in text, f"seed {seed}: {text}\n{run.world.tail(15)}"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("group", range(GROUPS))
def test_any_body_is_dropped_or_ends_its_reader_in_good_order(group: int) -> None:
    hurt: Counter[str] = Counter()
    for seed in SEEDS[group * len(SEEDS) // GROUPS :][: len(SEEDS) // GROUPS]:
        lie(seed, hurt)
    assert set(HEARD) <= hurt.keys(), f"not all of what roles hear was hurt: {sorted(hurt)}"


# -- control calls ---------------------------------------------------------------------------------------------------
CALLS: dict[str, list[dict[str, Any]]] = {
    "gadget session": [
        {"method": "export_fail", "export": "a1"},
        {"method": "export_limit", "export": "a1", "limit_s": 5},
        {"method": "export_resume", "export": "a1"},
    ],
    "host session": [
        {"method": "eject", "names": ["a1"]},
        {"method": "flushed", "names": ["a1"]},
        {"method": "remove", "name": "a1"},
        {"method": "add", "source": {"name": "c", "path": "c", "export_id": 12, "block_size": 512, "size_bytes": 4096}},
        {"method": "sources"},
    ],
}
"""Each role's own calls, as the commands make them."""


class Methods:
    """The control server of a role in the simulator, without its socket: what it has registered, and how it answers."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, Callable[[dict[str, Any]], Any]]] = {}

    def register(self, role: SimRole, name: str, handler: Callable[[dict[str, Any]], Any]) -> None:
        self.of.setdefault(f"{role.runtime.side} {role.name}", {})[name] = handler


@pytest.mark.parametrize("role", CALLS)
def test_any_arguments_of_a_call_are_answered(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, rng = Methods(), random.Random(5)
    monkeypatch.setattr(SimRole, "method", lambda role, name, handler: methods.register(role, name, handler))
    monkeypatch.setattr("gadget.session.operator.save_wishes", lambda *_: None)
    monkeypatch.setattr("gadget.session.operator.load_wishes", lambda *_: {})
    monkeypatch.setattr("host.session.offer.save_served", lambda *_: None)
    monkeypatch.setattr("host.session.offer.save_ejection", lambda *_: None)

    def call() -> None:
        server = object.__new__(ControlServer)
        server._role, server._generation, server._methods = role, 7, methods.of[role]
        assert {call["method"] for call in CALLS[role]} <= server._methods.keys()
        for _ in range(300):
            arguments = dict(rng.choice(CALLS[role]))
            method = arguments.pop("method")
            good = server._replied(1, method, arguments)
            bad = server._replied(1, method, other(rng, arguments) if rng.random() < 0.9 else {})
            for reply in (good, bad):
                serial, ok, value, status = Envelope.decode(reply).body
                assert serial == 1 and (
                    ok or (isinstance(value, str) and value.isprintable() and status in range(1, 6))
                )

    run = Run(7, requests=20, faults=1)
    finish = run._disks_are_as_read

    def then() -> None:
        finish()
        run.processes[tuple(role.split())].do(call)  # type: ignore[index]

    monkeypatch.setattr(run, "_disks_are_as_read", then)
    run.execute()
    assert run.world.violation is None, str(run.world.violation)


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (lambda a: "x" * limits.MAX_ENVELOPE, "its answer is longer than a message can be"),
        (lambda a: {1: object()}, "its answer cannot be said"),
        (lambda a: int(float("inf")), "OverflowError"),
        (lambda a: a.missing, "AttributeError"),
        (lambda a: (_ for _ in ()).throw(Refused("r" * limits.MAX_ENVELOPE)), "rrr"),
    ],
)
def test_a_call_whose_answer_cannot_be_given_says_so(handler: Callable[[Any], Any], why: str) -> None:
    server = object.__new__(ControlServer)
    server._role, server._generation, server._methods = "usb", 7, {"ask": handler}
    serial, ok, text, status = Envelope.decode(server._replied(4, "ask", {})).body
    assert (serial, ok, status) == (4, False, 2) and why in text and len(text) < 2000


def test_a_call_of_a_name_without_end_is_answered() -> None:
    server = object.__new__(ControlServer)
    server._role, server._generation, server._methods = "usb", 7, {}
    assert not Envelope.decode(server._replied(4, "\x1b" * 60_000, {})).body[1]
