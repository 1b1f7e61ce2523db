"""Writes docs/recovery-table.md from what `make chaos-cells` measured: python -m tests.chaos.document [FILE].

With `--native`, docs/recovery-table-native.md from `make chaos-native CELLS=2`.
"""

import sys
from pathlib import Path

from bus.runtime import Side
from tests.chaos.events import Cut, Event, Key, Kill, Stop, Unplug
from tests.chaos.results import Results
from tests.chaos.scenario import impossible
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
changed world. Each cell: the longest gap between two completions around the event, median / longest, in ms. In every
cell all I/O ended well and every block was verified. {where}

"dies": the role is killed at the stage. "stops": it is stopped there for 0.5 s. A dash with a letter is a cell that
cannot exist, and says below why.
"""
_IN_A_GUEST = """Measured in the emulated guest on two processors: a cold
`python3 -c 'import zmq'` takes about 1.4 s there. Written by `python -m tests.chaos.document` from a run of
`make chaos-cells`."""
_NATIVE = """Measured natively: the roles, the bus,
the fd store, watchdog, spawner and twin are real processes, **the kernel's shells are replaced**: the cable with
FunctionFS and usbfs, and ublk with the block layer, are models in a process of their own (tests/native), so their
times are no hardware's. "authorized" is there the cable itself, out for 0.3 s and in; enumeration takes 0.03 to 0.3 s
of it. Two processors, at low priority beside other work (a load of 8 to 10): most of the longer ones is waiting for a
processor. At a load of 3 the medians of a plain death of gadget `queue` and `usb` were 70 and 47 ms. Written by
`python -m tests.chaos.document --native` from a run of `make chaos-native CELLS=2`."""


def main(arguments: list[str]) -> int:
    native = "--native" in arguments
    files = [Path(argument) for argument in arguments if argument != "--native"]
    results = Results(beside=files or ([MEASURED_NATIVE] if native else sorted(MEASURED.glob("cells*.jsonl"))))
    reasons: dict[str, str] = {}
    title, where = (", natively", _NATIVE) if native else ("", _IN_A_GUEST)
    text = _INTRODUCTION.format(title=title, where=where)
    text += _table("Its own death, and the cable", [None, Stop(Side.GADGET, ""), *map(Unplug, Cut)], results, reasons)
    for side in Side:
        kills: list[Event | None] = [Kill(s, role) for s, role in _ROLES if s is side]
        text += _table(f"kill -9 on the {side}'s side", kills, results, reasons)
    text += "\n" + "\n".join(f"- {letter}: {why}." for why, letter in reasons.items()) + "\n"
    target = TARGET_NATIVE if native else TARGET
    target.write_text(text)
    print(f"{target} written")
    return 0


def _table(title: str, events: list[Event | None], results: Results, reasons: dict[str, str]) -> str:
    rows = [f"| stage | {' | '.join(map(_column, events))} |", "|---" * (len(events) + 1) + "|"]
    for stage in stages(_ROLES):
        cells = [_cell(stage, event, results, reasons) for event in events]
        rows.append(f"| {stage} | {' | '.join(cells)} |")
    return f"\n## {title}\n\n" + "\n".join(rows) + "\n"


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


def _cell(stage: Stage, event: Event | None, results: Results, reasons: dict[str, str]) -> str:
    if isinstance(event, Stop):
        event = Stop(stage.side, stage.role)
    why = impossible(stage, event)
    if why is not None:
        return "— " + reasons.setdefault(why, "abc"[len(reasons)])
    return results.cell(*At(stage, event).told())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
