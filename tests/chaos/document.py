"""Writes docs/recovery-table.md from what `make chaos-cells` measured: python -m tests.chaos.document [FILE].

With `--native`, docs/recovery-table-native.md from `make chaos-native CELLS=2`.
"""

import sys
from pathlib import Path
from textwrap import shorten

from bus.runtime import Side
from tests.chaos.budgets import guest_limits, judged, native_limits, report
from tests.chaos.events import Cut, Event, Key, Kill, Sleep, Stop, Suspend, Unplug
from tests.chaos.results import NOT_RUN, Results
from tests.chaos.scenario import Sleeps, Strike, every, impossible, no_event, pairs, told
from tests.chaos.stages import At, Stage, stages

MEASURED = Path(".setup/results/chaos")  # cells.jsonl, or one for each guest
MEASURED_NATIVE = Path(".setup/results/chaos/native-cells.jsonl")
TARGET = Path("docs/recovery-table.md")
TARGET_NATIVE = Path("docs/recovery-table-native.md")
_ROLES: list[Key] = [
    *((Side.GADGET, role) for role in ("queue", "usb", "session", "watchdog", "spawner")),
    *((Side.HOST, role) for role in ("source", "usb", "session", "watchdog", "spawner")),
]
_INTRODUCTION = """# Every fault at every stage{title}

One row for each stage that a role can be in, one column for each event that can strike meanwhile. The role has told
that it is at the stage, I/O of two disks was in flight, and every other process kept its pid; then it went on in the
changed world. Each cell: the longest gap between two completions around the event, in ms, or, if it was struck several
times, median / longest of them. In every cell with a figure all I/O ended well and every block was verified.

{where}

"dies": the role is killed at the stage. "stops": it is stopped there for 0.5 s. A dash with a letter is a cell that
cannot exist, and says below why.
"""
_IN_A_GUEST = """Measured in the emulated guest; what the kernel logged was compared, after each
cell, with a list of the lines that are expected, each with its reason. "suspend, freezer" freezes the tasks of the
machine for 5 s, or for 2 s where the kernel gives up at a task that waits for I/O; that they did not run is measured.
The two processors had much other work (a load of 10 to 17, and this at nice 10): a cold start of Python is told at the
end (1.4 s on a machine of its own), with what failed, and with what was not run yet. Written by `python -m
tests.chaos.document` from a run of `make chaos-cells CELLS=1`."""
_NATIVE = """Measured natively: the roles, the bus, the fd store, watchdog, spawner and twin are real processes, **the
kernel's shells are replaced**: the cable with FunctionFS and usbfs, and ublk with the block layer, are models in a
process of their own (tests/native), so their times are no hardware's. "authorized" is there the cable itself, out for
0.3 s and in; enumeration takes 0.03 to 0.3 s of it. Two processors, at low priority (nice 15) beside other work (a
load of 13 to 15): how much of a pause is waiting for a processor is told by the gap without a fault, at the end. At a
load of 3 the medians of a plain death of gadget `queue` and `usb` were 70 and 47 ms in an earlier run. Written by
`python -m tests.chaos.document --native` from a run of `make chaos-native CELLS=1`."""


def main(arguments: list[str]) -> int:
    native = "--native" in arguments
    files = [Path(argument) for argument in arguments if argument != "--native"]
    results = Results(beside=files or ([MEASURED_NATIVE] if native else sorted(MEASURED.glob("cells*.jsonl"))))
    target = TARGET_NATIVE if native else TARGET
    target.write_text(Page(results, native).text())
    print(f"{target} written")
    return 0


class Page:
    """The document of `results`. What has no figure is named at its end: why it cannot exist, that it failed, or that
    it was not run yet."""

    def __init__(self, results: Results, native: bool) -> None:
        self._results, self._native = results, native
        self._sleeps: Sleeps = () if native else tuple(Sleep)
        self._reasons: dict[str, str] = {}
        self._missing: list[str] = []

    def text(self) -> str:
        title, where = (", natively", _NATIVE) if self._native else ("", _IN_A_GUEST)
        own: list[Event | None] = [None, Stop(Side.GADGET, ""), *map(Unplug, Cut), *map(Suspend, Sleep)]
        parts = [_INTRODUCTION.format(title=title, where=where)]
        parts.append(self._table("Its own death, the cable, and sleep", own))
        parts.append(self._whenever())
        for side in Side:
            parts.append(
                self._table(f"kill -9 on the {side}'s side", [Kill(s, role) for s, role in _ROLES if s is side])
            )
        parts.append("\n" + "\n".join(f"- {letter}: {why}." for why, letter in self._reasons.items()) + "\n")
        return "".join(parts) + self._budgets() + self._failed() + self._not_run()

    def _whenever(self) -> str:
        """What strikes while I/O is in flight, wherever that is."""
        strikes: list[tuple[Strike, ...]] = [(e,) for e in every(_ROLES, tuple(Sleep)) if not isinstance(e, At)]
        rows = ["| event, at any time | pause, ms |", "|---|---|"]
        for struck in [*strikes, *pairs(_ROLES)]:
            why = next((w for event in struck if (w := no_event(event, self._sleeps))), None)
            rows.append(f"| {told(struck)[0]} | {self._reason(why) if why else self._measured(*told(struck))} |")
        return "\n## At any time, one event or two kills at once\n\n" + "\n".join(rows) + "\n"

    def _table(self, title: str, events: list[Event | None]) -> str:
        rows = [f"| stage | {' | '.join(map(_column, events))} |", "|---" * (len(events) + 1) + "|"]
        for stage in stages(_ROLES):
            rows.append(f"| {stage} | {' | '.join(self._cell(stage, event) for event in events)} |")
        return f"\n## {title}\n\n" + "\n".join(rows) + "\n"

    def _cell(self, stage: Stage, event: Event | None) -> str:
        if isinstance(event, Stop):
            event = Stop(stage.side, stage.role)
        why = impossible(stage, event, self._sleeps)
        return self._reason(why) if why is not None else self._measured(*At(stage, event).told())

    def _reason(self, why: str) -> str:
        return "— " + self._reasons.setdefault(why, "abcdefgh"[len(self._reasons)])

    def _measured(self, event: str, stage: str) -> str:
        cell = self._results.cell(event, stage)
        if cell == NOT_RUN:
            self._missing.append(_name(event, stage))
        return cell

    def _budgets(self) -> str:
        limits = native_limits if self._native else guest_limits
        measured = self._results.measured
        verdicts = judged(self._results.promised, limits(measured))
        return f"\n## Against what is promised\n\n{report(verdicts, measured)}\n" if verdicts else ""

    def _failed(self) -> str:
        lines = [
            f"- {_name(event, stage)}: {shorten(why, 300)}" for (event, stage), why in self._results.failures.items()
        ]
        return "\n## Failed\n\n" + "\n".join(lines) + "\n" if lines else ""

    def _not_run(self) -> str:
        lines = [f"- {name}" for name in self._missing]
        return f"\n## Not run yet: {len(lines)} cells\n\n" + "\n".join(lines) + "\n" if lines else ""


def _name(event: str, stage: str) -> str:
    return f"{event} at {stage}" if stage else event


def _column(event: Event | None) -> str:
    match event:
        case None:
            return "dies"
        case Stop():
            return "stops"
        case Kill(_, role):
            return role
        case _:
            return str(event)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
