"""What `replug top` knows and decides: documents of status and keys in, a View and orders out. No terminal, no clock.

A look may fail, the side may go and come back: the last known rows stay on the screen, marked with their age.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from common.units import show_time
from tools.top.events import events

HISTORY = 240  # rates kept for the sparkline: more than any terminal shows
EVENTS = 200  # lines kept
Document = dict[str, Any]


class Mode(Enum):
    MAIN = auto()
    HELP = auto()
    LOG = auto()  # the selected process's log
    CONFIRM = auto()  # a kill is asked about


class Order(Enum):
    """What the shell is told to do with the selected role."""

    RESTART = "restart"
    DRAIN = "drain"
    KILL = "kill"
    LOG = "log"
    QUIT = "quit"


# What a key does in a mode: the next mode, and an order for the shell. Anything else is ignored.
KEYS: dict[tuple[Mode, str], tuple[Mode, Order | None]] = {
    (Mode.MAIN, "r"): (Mode.MAIN, Order.RESTART),
    (Mode.MAIN, "d"): (Mode.MAIN, Order.DRAIN),
    (Mode.MAIN, "k"): (Mode.CONFIRM, None),
    (Mode.MAIN, "l"): (Mode.LOG, Order.LOG),
    (Mode.MAIN, "?"): (Mode.HELP, None),
    (Mode.MAIN, "q"): (Mode.MAIN, Order.QUIT),
    (Mode.CONFIRM, "y"): (Mode.MAIN, Order.KILL),
    (Mode.CONFIRM, "n"): (Mode.MAIN, None),
    (Mode.CONFIRM, "escape"): (Mode.MAIN, None),
    (Mode.LOG, "l"): (Mode.LOG, Order.LOG),  # read it again
    (Mode.LOG, "q"): (Mode.MAIN, None),
    (Mode.LOG, "escape"): (Mode.MAIN, None),
    (Mode.HELP, "q"): (Mode.MAIN, None),
    (Mode.HELP, "?"): (Mode.MAIN, None),
    (Mode.HELP, "escape"): (Mode.MAIN, None),
}
_MOVES = {"up": -1, "down": 1}


@dataclass(frozen=True)
class ExportView:
    """One export: session's and its process's words, and rates between the last two looks (None: not known)."""

    row: Document
    read_bytes_s: float | None
    write_bytes_s: float | None
    iops: float | None
    history: tuple[float | None, ...]  # bytes a second, oldest first; None: nobody could tell


@dataclass(frozen=True)
class View:
    """Everything that a screen shows, whatever its size."""

    mode: Mode
    title: str
    state: str
    link: Document
    session: str
    up: str  # for how long the side is up; empty: not known
    notice: str  # the one thing to know above all: why nothing answers
    exports: tuple[ExportView, ...]
    processes: tuple[Document, ...]  # each with `up`: for how long it is in its state
    selected: str
    events: tuple[str, ...]
    log: tuple[str, ...]


@dataclass
class _Rates:
    """Of one export: the counters at the last look, and what came of them."""

    at: float = 0.0
    counters: Document | None = None
    read_bytes_s: float | None = None
    write_bytes_s: float | None = None
    iops: float | None = None
    history: "deque[float | None]" = field(default_factory=lambda: deque(maxlen=HISTORY))

    def looked(self, counters: Document | None, now: float) -> None:
        before, self.counters = self.counters, counters
        length_s, self.at = now - self.at, now
        if counters is None or before is None or length_s <= 0 or _total(counters) < _total(before):
            # Not known: its process does not answer, or is a new one whose counts begin at 0.
            self.read_bytes_s = self.write_bytes_s = self.iops = None
        else:
            self.read_bytes_s = (counters["read_bytes"] - before["read_bytes"]) / length_s
            self.write_bytes_s = (counters["write_bytes"] - before["write_bytes"]) / length_s
            self.iops = (_total(counters) - _total(before)) / length_s
        known = self.read_bytes_s is not None and self.write_bytes_s is not None
        self.history.append((self.read_bytes_s or 0) + (self.write_bytes_s or 0) if known else None)


def _total(counters: Document) -> int:
    return sum(int(counters[f"{name}_count"]) for name in ("read", "write", "flush", "discard"))


class Top:
    """The state of the screen."""

    def __init__(self, title: str) -> None:
        self._title, self._mode = title, Mode.MAIN
        self._document: Document | None = None  # the last one that had processes in it
        self._seen: Document | None = None  # the last one of all
        self._known_at = 0.0
        self._rates: dict[str, _Rates] = {}
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._selected = ""
        self._log: tuple[str, ...] = ()

    @property
    def selected(self) -> str:
        return self._selected

    def looked(self, document: Document, now: float, clock: str) -> None:
        """A look at the side, at `now` (monotonic); `clock` is the time of day for the event log."""
        for line in self._differences(document):
            self.note(line, clock)
        self._seen = document
        if not document["processes"]:
            for rates in self._rates.values():
                rates.looked(None, now)
            return
        self._document, self._known_at = document, now
        self._title = f"{document['side']}:{document['instance']}"
        for export in document["exports"]:
            self._rates.setdefault(export["id"], _Rates()).looked(export.get("counters"), now)
        roles = [row["role"] for row in document["processes"]]
        if self._selected not in roles:
            self._selected = next((role for role in roles if "." in role), roles[-1])

    def _differences(self, document: Document) -> list[str]:
        """Against the last look for the side, against the last one with processes for these: a gap hides nothing."""
        if self._seen is None:
            return []
        lines = events(self._seen, document)
        if document["processes"] and not self._seen["processes"] and self._document is not None:
            before = {**self._document, "state": document["state"], "reason": document.get("reason", "")}
            lines += events(before, document)
        return lines

    def note(self, line: str, clock: str) -> None:
        self._events.append(f"{clock} {line}")

    def logged(self, lines: list[str]) -> None:
        """The log asked for by Order.LOG."""
        self._log = tuple(lines)

    def key(self, key: str) -> Order | None:
        """A key; an order for the shell, about `selected`, if it means one."""
        if self._mode is Mode.MAIN and key in _MOVES and self._document is not None:
            roles = [row["role"] for row in self._document["processes"]]
            at = roles.index(self._selected) + _MOVES[key]
            self._selected = roles[max(0, min(at, len(roles) - 1))]
            return None
        self._mode, order = KEYS.get((self._mode, key), (self._mode, None))
        if order is not None and order is not Order.QUIT and not self._selected:
            self._mode = Mode.MAIN
            return None
        return order

    def view(self, now: float, wall: float) -> View:
        """`now` is monotonic, `wall` seconds since the epoch (processes tell since when in ISO 8601)."""
        seen, known = self._seen or {"state": "", "reason": "looking"}, self._document
        notice = str(seen.get("reason") or "")
        if known is not None and not seen.get("processes"):
            notice += f" (below: what was known {show_time(now - self._known_at)} ago)"
        shown = known or {"link": {"state": "absent"}, "exports": [], "processes": [], "session_id": None}
        link = shown["link"] if seen.get("processes") else seen.get("link", {"state": "absent"})  # of now, not of then
        return View(
            mode=self._mode,
            title=self._title,
            state=str(seen["state"]),
            link={**link, "age": age(link.get("since"), wall)},
            session=str(shown["session_id"] or ""),
            up=age(shown.get("since"), wall),
            notice=notice,
            exports=tuple(self._export(export) for export in shown["exports"]),
            processes=tuple({**row, "up": age(row["since"], wall)} for row in shown["processes"]),
            selected=self._selected,
            events=tuple(self._events),
            log=self._log,
        )

    def _export(self, row: Document) -> ExportView:
        rates = self._rates.get(row["id"], _Rates())
        history = tuple(rates.history)
        return ExportView(row, rates.read_bytes_s, rates.write_bytes_s, rates.iops, history)


def age(since: Any, wall: float) -> str:
    """`14s` since an ISO 8601 time; empty if there is none."""
    from datetime import datetime

    try:
        return show_time(max(0.0, wall - datetime.fromisoformat(str(since)).timestamp()))
    except ValueError:
        return ""
