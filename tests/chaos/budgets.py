"""The promises on pauses, and the verdict of what a run measured. No clock and no I/O in here.

A pause is the longest gap between two completions while requests are in flight. What is promised natively are the
figures of docs/explanation/recovery.md; under an emulator time is another, so there a death is measured by a cold start
of Python in the same run. What nothing is promised for (two at once, a stopped process, a sleep) is not judged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from bus.runtime import Side
from tests.chaos.events import OUT_S, Cut, Kill, Unplug, kind_of
from tests.chaos.scenario import Strike
from tests.chaos.stages import At, Way

COLD_START = "cold start"  # names of what is measured besides pauses
FAULT_FREE = "gap without a fault"


class Promise(StrEnum):
    """What is struck, as far as something is promised for it."""

    GADGET_DATA = "death of gadget queue, usb"
    HOST_DATA = "death of host usb, source"
    NO_DATA = "death of a session, watchdog, spawner"
    CABLE = "cable out and in"
    RESET = "USB reset"


_DATA = {
    (Side.GADGET, "queue"): Promise.GADGET_DATA,
    (Side.GADGET, "usb"): Promise.GADGET_DATA,
    (Side.HOST, "usb"): Promise.HOST_DATA,
    (Side.HOST, "source"): Promise.HOST_DATA,
}
_ENUMERATION_S = 0.3  # by the models at the most; the promise begins after it
NATIVE_S = {
    Promise.GADGET_DATA: 0.1,
    Promise.HOST_DATA: 0.5,
    Promise.CABLE: OUT_S + _ENUMERATION_S + 1.0,
    Promise.RESET: _ENUMERATION_S + 1.0,
}
_NO_PAUSE = 2.0  # "does not pause": so many times the longest gap without a fault


def promised(struck: Sequence[Strike]) -> Promise | None:
    """For one death, wherever an I/O was, or one loss of the link; None for all else, where two things happen."""
    if len(struck) != 1:
        return None
    match struck[0]:
        case Kill(side, role):
            return _DATA.get((side, kind_of(role)), Promise.NO_DATA)
        case At(stage, None) if stage.way is Way.IO:
            return _DATA.get((stage.side, kind_of(stage.role)), Promise.NO_DATA)
        case Unplug(Cut.RESET):
            return Promise.RESET
        case Unplug():
            return Promise.CABLE
    return None


def native_limits(measured: Mapping[str, Sequence[float]]) -> dict[Promise, float]:
    """In seconds. Without a gap of the same run "does not pause" cannot be judged."""
    gaps = measured.get(FAULT_FREE)
    return {**NATIVE_S, **({Promise.NO_DATA: _NO_PAUSE * max(gaps)} if gaps else {})}


def guest_limits(measured: Mapping[str, Sequence[float]]) -> dict[Promise, float]:
    """At most one cold start of Python, the median of those measured."""
    starts = measured.get(COLD_START)
    return {Promise.GADGET_DATA: median(starts)} if starts else {}


@dataclass(frozen=True)
class Judged:
    """The pauses of one promise."""

    promise: Promise
    limit_s: float | None  # None: nothing is promised here
    pauses_s: tuple[float, ...]

    @property
    def above(self) -> int:
        return sum(pause > self.limit_s for pause in self.pauses_s) if self.limit_s is not None else 0

    @property
    def outcome(self) -> str:
        """A limit is for the longest; one that most keep is told from one that most miss."""
        if self.limit_s is None:
            return "not promised here"
        if not self.above:
            return "kept"
        return "MISSED, by the median too" if median(self.pauses_s) > self.limit_s else "MISSED by the longest"

    def row(self, unit_s: float | None) -> str:
        limit = f"{self.limit_s * 1000:.0f}" if self.limit_s is not None else "-"
        middle, longest = median(self.pauses_s), max(self.pauses_s)
        times = f" ({middle / unit_s:.1f} / {longest / unit_s:.1f} cold starts)" if unit_s else ""
        told = f"{middle * 1000:.0f} / {longest * 1000:.0f}{times}"
        return f"| {self.promise} | {limit} | {len(self.pauses_s)} | {told} | {self.above} | {self.outcome} |"


def judged(pauses: Iterable[tuple[Promise, float]], limits: Mapping[Promise, float]) -> list[Judged]:
    """One for each promise that was put to the test, in the order of Promise."""
    taken = list(pauses)
    found = []
    for promise in Promise:
        ours = tuple(pause for its, pause in taken if its is promise)
        if ours:
            found.append(Judged(promise, limits.get(promise), ours))
    return found


def report(verdicts: Sequence[Judged], measured: Mapping[str, Sequence[float]]) -> str:
    """For people: a table, and one line that says whether all was kept."""
    starts, gaps = measured.get(COLD_START), measured.get(FAULT_FREE)
    lines = ["| pause after | at most, ms | strikes | median / longest, ms | above | |", "|---|---|---|---|---|---|"]
    lines += [verdict.row(median(starts) if starts else None) for verdict in verdicts]
    lines.append("")
    if starts:
        lines.append(f"a cold start of Python (import zmq) in this run: {median(starts) * 1000:.0f} ms")
    if gaps:
        told = f"{median(gaps) * 1000:.0f} / {max(gaps) * 1000:.0f} ms"
        lines.append(f"longest gap without a fault in this run, of {len(gaps)} windows: median / longest {told}")
    missed = [str(verdict.promise) for verdict in verdicts if verdict.above]
    lines.append(f"budgets: MISSED: {', '.join(missed)}" if missed else "budgets: kept")
    return "\n".join(lines)
