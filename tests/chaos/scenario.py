"""What is struck in a run: drawn from a seed, or every event of the table, or every event at every stage of it."""

import random

from bus.runtime import Side
from tests.chaos.events import Cut, Event, Key, Kill, Sleep, Stop, Suspend, Terminate, Unplug, WholeSide, kind_of
from tests.chaos.stages import At, Stage, killed, stages

Strike = Event | At
_SUPERVISION = ("watchdog", "spawner")  # SIGTERM of them is not for a process list: `down` ends a side
_G, _H = Side.GADGET, Side.HOST
_PAIRS: tuple[tuple[Key, Key], ...] = (
    ((_G, "queue"), (_G, "usb")),
    ((_G, "usb"), (_H, "usb")),
    ((_H, "usb"), (_H, "source")),
    ((_G, "session"), (_G, "usb")),
    ((_H, "session"), (_H, "usb")),
    ((_G, "watchdog"), (_G, "queue")),
    ((_G, "spawner"), (_G, "usb")),
    ((_G, "spawner"), (_G, "watchdog")),
    ((_H, "spawner"), (_H, "watchdog")),
    ((_G, "session"), (_H, "session")),
)
Sleeps = tuple[Sleep, ...]  # what there is that can sleep: events.Cable.sleeps of the run


def draw(choose: random.Random, roles: list[Key], sleeps: Sleeps) -> tuple[Strike, ...]:
    """One event, or, a third of the time, two: then a kill beside any other."""
    kills = [Kill(side, role) for side, role in roles]
    stops = [Stop(side, role) for side, role in roles]
    terms = [Terminate(side, role) for side, role in roles if role not in _SUPERVISION]
    cuts = [Unplug(cut) for cut in Cut]
    points = [At(stage, None) for stage in stages(roles)]
    alone: list[Strike] = [*map(WholeSide, Side), *(Kill(side, "twin") for side in Side)]
    pool: list[Strike] = [*kills, *points, *stops, *terms, *cuts, *cuts, *map(Suspend, sleeps), *alone]
    first = choose.choice(pool)
    if first in alone or choose.random() < 2 / 3:
        return (first,)
    others = [kill for kill in kills if kill != first and not _meet(kill, first)]
    return (first, choose.choice(others))


def _meet(kill: Kill, other: Strike) -> bool:
    """Is it the one that is stopped, or killed, by the other?"""
    stopped = {(other.side, other.role)} if isinstance(other, Stop) else set()
    return (kill.side, kill.role) in stopped | killed(other)


def every(roles: list[Key], sleeps: Sleeps) -> list[Strike]:
    """Each event of the table once, and each stage's own death: of several queues or sources the first."""
    ones = _one_each(roles)
    return [
        *(Unplug(cut) for cut in Cut),
        *(Kill(*key) for key in ones),
        *(Kill(side, "twin") for side in Side),
        *(Stop(*key) for key in ones),
        *(Terminate(*key) for key in ones if key[1] not in _SUPERVISION),
        *map(Suspend, sleeps),
        *map(WholeSide, Side),
        *(At(stage, None) for stage in stages(roles)),
    ]


def pairs(roles: list[Key]) -> list[tuple[Kill, Kill]]:
    """Two kills at once, for the table: who shares the most, or has to heal the other."""
    one = {(side, kind_of(role)): (side, role) for side, role in reversed(roles)}
    return [(Kill(*one[first]), Kill(*one[second])) for first, second in _PAIRS]


def cells(roles: list[Key], sleeps: Sleeps) -> list[At]:
    """Each event at each stage: the stage's role dies there, or sleeps there while something happens, or nothing."""
    found = []
    for stage in stages(roles):
        own: list[Event | None] = [None, Stop(stage.side, stage.role)]
        own += [*(Unplug(cut) for cut in Cut), *map(Suspend, sleeps), *(Kill(*key) for key in _one_each(roles))]
        found += [At(stage, event) for event in own if impossible(stage, event) is None]
    return found


def table(roles: list[Key], sleeps: Sleeps) -> list[tuple[Strike, ...]]:
    """All that the document has a place for: the cells, and what strikes at any time, alone or two at once."""
    whenever = [strike for strike in every(roles, sleeps) if not isinstance(strike, At)]
    return [*((at,) for at in cells(roles, sleeps)), *((strike,) for strike in whenever), *pairs(roles)]


def sleeps_in(struck: tuple[Strike, ...]) -> bool:
    """Does it put this machine to sleep?"""
    events = [strike.event if isinstance(strike, At) else strike for strike in struck]
    return Suspend(Sleep.FREEZER) in events


def told(struck: tuple[Strike, ...]) -> tuple[str, str]:
    """Event and stage, as the document names them."""
    if len(struck) == 1 and isinstance(struck[0], At):
        return struck[0].told()
    return " and ".join(map(str, struck)), ""


def no_event(event: Strike, sleeps: Sleeps) -> str | None:
    """Why there is no such event in this run, or None if there is."""
    if isinstance(event, Suspend) and event.sleep not in sleeps:
        return "the models have nothing that could sleep, and the machine of a native run is not ours to put to sleep"
    return None


def impossible(stage: Stage, event: Event | None, sleeps: Sleeps = tuple(Sleep)) -> str | None:
    """Why there is no such cell, or None if there is."""
    if event is not None and (why := no_event(event, sleeps)):
        return why
    if isinstance(event, Kill):
        if (event.side, event.role) == (stage.side, stage.role):
            return "its own death has a column"
        if (event.side, event.role) in stage.dead():
            return "dead already: its death brought the stage"
    return None


def _one_each(roles: list[Key]) -> list[Key]:
    found: dict[Key, Key] = {}
    for key in roles:
        found.setdefault((key[0], kind_of(key[1])), key)
    return list(found.values())
