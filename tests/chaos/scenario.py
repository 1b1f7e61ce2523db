"""What is struck in a run: drawn from a seed, or every event of the table, or every event at every stage of it."""

import random

from tests.chaos.events import Cut, Event, Key, Kill, Sleep, Stop, Suspend, Unplug, kind_of
from tests.chaos.stages import At, Stage, killed, stages

Strike = Event | At
Sleeps = tuple[Sleep, ...]  # what there is that can sleep: events.Cable.sleeps of the run


def draw(choose: random.Random, roles: list[Key], sleeps: Sleeps) -> tuple[Strike, ...]:
    """One event, or, a third of the time, two: then a kill beside any other."""
    kills = [Kill(side, role) for side, role in roles]
    stops = [Stop(side, role) for side, role in roles]
    cuts = [Unplug(cut) for cut in Cut]
    points = [At(stage, None) for stage in stages(roles)]
    pool: list[Strike] = [*kills, *points, *stops, *cuts, *cuts, *map(Suspend, sleeps)]
    first = choose.choice(pool)
    if choose.random() < 2 / 3:
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
        *(Stop(*key) for key in ones),
        *map(Suspend, sleeps),
        *(At(stage, None) for stage in stages(roles)),
    ]


def cells(roles: list[Key], sleeps: Sleeps) -> list[At]:
    """Each event at each stage: the stage's role dies there, or sleeps there while something happens, or nothing."""
    found = []
    for stage in stages(roles):
        own: list[Event | None] = [None, Stop(stage.side, stage.role)]
        own += [*(Unplug(cut) for cut in Cut), *map(Suspend, sleeps), *(Kill(*key) for key in _one_each(roles))]
        found += [At(stage, event) for event in own if impossible(stage, event) is None]
    return found


def impossible(stage: Stage, event: Event | None, sleeps: Sleeps = tuple(Sleep)) -> str | None:
    """Why there is no such cell, or None if there is."""
    if isinstance(event, Suspend) and event.sleep not in sleeps:
        return "the models have nothing that could sleep, and the machine of a native run is not ours to put to sleep"
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
