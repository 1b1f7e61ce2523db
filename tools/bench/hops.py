"""Where the time of one lone I/O goes: the trace points of all roles, put in order, and the steps between them.

Both sides must be on one machine: CLOCK_MONOTONIC is one clock there. `steps` is pure.
"""

from collections.abc import Iterable, Mapping
from statistics import median

from bus.control import ask
from bus.runtime import Runtime, Side
from common.errors import ReplugError
from tools.bench.core import Step

FIRST, LAST = "gadget.queue.request.taken", "gadget.queue.committed"
Records = Iterable[tuple[str, int]]


def record(instance: str, roles: Iterable[str], on: bool) -> list[tuple[str, int]]:
    """Begin or end recording in every role of the data path; what they recorded, names with their side in front."""
    found: list[tuple[str, int]] = []
    for place in roles:
        side, _, role = place.partition(".")
        if role.partition(".")[0] in ("queue", "usb", "source"):
            try:
                told = ask(Runtime(Side(side), instance), role, "record", {"on": on})
            except ReplugError:
                continue
            found += [(f"{side}.{name}", at) for name, at in told]
    return found


def steps(records: Records) -> list[Step]:
    """The usual way of an I/O from FIRST to LAST, and the median of each of its steps.

    I/Os must not overlap. Those that went another way (a beat in between, a fork of two requests) are left out.
    """
    ways: dict[tuple[str, ...], list[list[int]]] = {}
    way: list[tuple[str, int]] = []
    for name, at in sorted(records, key=lambda record: record[1]):
        if name == FIRST:
            way = []
        way.append((name, at))
        if name == LAST and way[0][0] == FIRST:
            ways.setdefault(tuple(n for n, _ in way), []).append([at for _, at in way])
            way = []
    if not ways:
        return []
    names, times = max(ways.items(), key=lambda item: len(item[1]))
    return [
        Step(f"{names[n]} to {names[n + 1]}", median(at[n + 1] - at[n] for at in times) / 1000)
        for n in range(len(names) - 1)
    ]


def document(found: Iterable[Step]) -> list[Mapping[str, object]]:
    return [{"step": step.name, "us": round(step.median_us, 1)} for step in found]
