"""The life of one role as a table: states, events, and what to do at each step. Data only.

Asked by tools.supervise.core, which tells apart the events that depend on facts. What is not in TABLE is illegal. One
rule stands above all: SPAWN and RETIRE come only where the role has no process.
"""

from enum import Enum, auto


class State(Enum):
    """Where one role stands. `value` is what status shows."""

    WAITING = ("starting", auto())  # no process; the back-off after a death before ready, or soon after it, runs
    SPAWNING = ("starting", auto())  # ordered from the spawner, pid not known yet
    STARTING = ("starting", auto())  # a process, not ready
    RUNNING = ("running", auto())
    ASKED = ("running", auto())  # silent too long; `alive?` was asked
    DRAINING = ("stopping", auto())  # SIGTERM sent
    KILLING = ("stopping", auto())  # SIGKILL sent
    STUCK = ("stuck", auto())  # SIGKILL sent, and it does not die (D state): nothing may take its place
    FAILED = ("failed", auto())  # it said that it can never work as configured
    RETIRE_ORDERED = ("stopping", auto())  # dead and not wanted; what it left is to be taken away
    RETIRING = ("stopping", auto())
    RETIRE_KILLING = ("stopping", auto())
    GONE = ("gone", auto())

    @property
    def shown(self) -> str:
        return str(self.value[0])


class Event(Enum):
    WANT = auto()
    UNWANT = auto()
    SPAWNED = auto()  # by our order, or found running and adopted
    SPAWNED_UNWANTED = auto()
    REFUSED = auto()  # the spawner could not fork
    REFUSED_UNWANTED = auto()
    LOST = auto()  # the spawner died with our order
    READY = auto()
    HEARD = auto()
    LATE = auto()  # this state's time is up
    RESTART = auto()
    KILL = auto()
    DIED_READY = auto()  # after it was ready, or because we asked it to: respawn at once
    DIED_EARLY = auto()  # before it was ready, or again and again soon after: respawned after a pause
    DIED_NEVER = auto()
    DIED_UNWANTED = auto()
    DIED_UNSEEN = auto()  # a retirement whose parent died with it: how it ended nobody knows, so it is done again


class Do(Enum):
    SPAWN = auto()
    RETIRE = auto()
    TERM = auto()
    KILL = auto()
    ASK = auto()


S, E = State, Event
ALIVE = (S.STARTING, S.RUNNING, S.ASKED, S.DRAINING, S.KILLING, S.STUCK)
LIVELY = (S.STARTING, S.RUNNING, S.ASKED)
ENDING = (S.RETIRE_ORDERED, S.RETIRING, S.RETIRE_KILLING)
Step = tuple[State, tuple[Do, ...]]

TABLE: dict[tuple[State, Event], Step] = {
    (S.GONE, E.WANT): (S.SPAWNING, (Do.SPAWN,)),
    (S.GONE, E.UNWANT): (S.RETIRE_ORDERED, (Do.RETIRE,)),
    (S.WAITING, E.LATE): (S.SPAWNING, (Do.SPAWN,)),
    (S.WAITING, E.RESTART): (S.SPAWNING, (Do.SPAWN,)),
    (S.WAITING, E.UNWANT): (S.RETIRE_ORDERED, (Do.RETIRE,)),
    (S.SPAWNING, E.SPAWNED): (S.STARTING, ()),
    (S.SPAWNING, E.SPAWNED_UNWANTED): (S.KILLING, (Do.KILL,)),
    (S.SPAWNING, E.REFUSED): (S.WAITING, ()),
    (S.SPAWNING, E.REFUSED_UNWANTED): (S.RETIRE_ORDERED, (Do.RETIRE,)),
    (S.SPAWNING, E.LOST): (S.SPAWNING, (Do.SPAWN,)),
    (S.SPAWNING, E.RESTART): (S.SPAWNING, ()),
    (S.STARTING, E.READY): (S.RUNNING, ()),
    (S.STARTING, E.HEARD): (S.STARTING, ()),
    (S.STARTING, E.LATE): (S.KILLING, (Do.KILL,)),
    (S.RUNNING, E.READY): (S.RUNNING, ()),
    (S.RUNNING, E.HEARD): (S.RUNNING, ()),
    (S.RUNNING, E.LATE): (S.ASKED, (Do.ASK,)),
    (S.ASKED, E.READY): (S.RUNNING, ()),
    (S.ASKED, E.HEARD): (S.RUNNING, ()),
    (S.ASKED, E.LATE): (S.KILLING, (Do.KILL,)),
    (S.DRAINING, E.LATE): (S.KILLING, (Do.KILL,)),
    (S.DRAINING, E.KILL): (S.KILLING, (Do.KILL,)),
    (S.KILLING, E.LATE): (S.STUCK, ()),
    (S.FAILED, E.RESTART): (S.SPAWNING, (Do.SPAWN,)),
    (S.FAILED, E.UNWANT): (S.RETIRE_ORDERED, (Do.RETIRE,)),
    (S.RETIRE_ORDERED, E.LOST): (S.RETIRE_ORDERED, (Do.RETIRE,)),
    (S.RETIRE_ORDERED, E.REFUSED): (S.WAITING, ()),
    (S.RETIRE_ORDERED, E.REFUSED_UNWANTED): (S.GONE, ()),
    (S.RETIRE_ORDERED, E.SPAWNED): (S.RETIRING, ()),
    (S.RETIRE_ORDERED, E.SPAWNED_UNWANTED): (S.RETIRING, ()),
    (S.RETIRING, E.LATE): (S.RETIRE_KILLING, (Do.KILL,)),
    (S.RETIRE_KILLING, E.LATE): (S.STUCK, ()),
    **{(s, E.RESTART): (S.DRAINING, (Do.TERM,)) for s in LIVELY},
    **{(s, E.KILL): (S.KILLING, (Do.KILL,)) for s in LIVELY},
    **{(s, E.UNWANT): (S.DRAINING, (Do.TERM,)) for s in LIVELY},
    **{(s, E.DIED_READY): (S.SPAWNING, (Do.SPAWN,)) for s in ALIVE + ENDING[1:]},
    **{(s, E.DIED_EARLY): (S.WAITING, ()) for s in ALIVE},
    **{(s, E.DIED_NEVER): (S.FAILED, ()) for s in ALIVE},
    **{(s, E.DIED_UNWANTED): (S.RETIRE_ORDERED, (Do.RETIRE,)) for s in ALIVE},
    **{(s, E.DIED_UNWANTED): (S.GONE, ()) for s in ENDING[1:]},
    **{(s, E.DIED_UNSEEN): (S.RETIRE_ORDERED, (Do.RETIRE,)) for s in ENDING[1:]},
    **{(s, E.WANT): (s, ()) for s in S if s is not S.GONE},
    **{(s, e): (s, ()) for s in (S.SPAWNING, S.DRAINING, S.KILLING, S.STUCK, *ENDING) for e in (E.UNWANT,)},
    **{(s, e): (s, ()) for s in (S.DRAINING, S.KILLING, S.STUCK) for e in (E.READY, E.HEARD)},
    **{(s, E.RESTART): (s, ()) for s in (S.DRAINING, S.KILLING, S.STUCK, *ENDING)},
    **{(s, E.KILL): (s, ()) for s in (S.KILLING, S.STUCK)},
}
