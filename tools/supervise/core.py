"""Who should run, who does, and what to do about the difference: the pure core of the watchdog.

Events with the time in, actions out. Nothing here knows sockets, processes or clocks. A role's life is
tools.supervise.table; the events that depend on facts (was it ready? is it still wanted?) are told apart here, before
the table is asked, so that it reads as a page. Driven by tools.supervise.watchdog.
"""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

from common import limits
from common.errors import Illegal, RoleExit
from tools.supervise.plan import RoleSpec, SupervisionLimits, stop_stage
from tools.supervise.table import ALIVE, ENDING, TABLE, Do, Event, State


@dataclass(frozen=True)
class Spawn:
    """Order a process for `spec.role`; the answer carries `serial`. `retire`: it shall run the entry's `retire`.

    `urgent`: I/O may wait for it; it goes before all others until it is ready.
    """

    spec: RoleSpec
    serial: int
    retire: bool = False
    urgent: bool = False


@dataclass(frozen=True)
class Signal:
    role: str
    pid: int
    number: signal.Signals


@dataclass(frozen=True)
class Ask:
    """Send `alive?`."""

    role: str


@dataclass(frozen=True)
class Show:
    """The role's state has changed."""

    role: str


Action = Spawn | Signal | Ask | Show


@dataclass
class RoleLife:
    """Everything known of one role. Times are the caller's monotonic seconds."""

    spec: RoleSpec
    dynamic: bool
    state: State = State.GONE
    wanted: bool = False
    pid: int | None = None
    generation: int = 0
    serial: int = 0  # of the order whose answer is awaited
    deadline: float | None = None
    since: float = 0.0
    restarts: int = 0
    early_deaths: int = 0  # in a row
    sudden_deaths: int = 0  # in a row, each soon after ready
    ready_at: float = 0.0  # of this process
    was_ready: bool = False
    lived: bool = False  # this role had a process before: what it served may wait for it
    asked_to_end: bool = False
    last_exit: str = ""
    reason: str = ""  # why it stands where it stands; empty when it runs
    died_at: float | None = None
    pause_s: float | None = None  # last death to ready again
    failure: str = ""  # what its retirement could not take away


@dataclass
class Core:
    """All roles of a side. Methods are events; each returns what to do. Illegal changes nothing."""

    bounds: SupervisionLimits = field(default_factory=SupervisionLimits)
    roles: dict[str, RoleLife] = field(default_factory=dict)
    going_down: bool = False
    _serial: int = 0

    # -- what should run -------------------------------------------------------------------------------------
    def want(self, spec: RoleSpec, now: float, dynamic: bool = False, lived: bool = False) -> list[Action]:
        """Have `spec` run. Other arguments than before restart it. `lived`: under a watchdog before this one."""
        life = self.roles.setdefault(spec.role, RoleLife(spec, dynamic, lived=lived))
        changed, life.spec, life.wanted = life.spec != spec, spec, True
        actions = self._step(life, Event.WANT, now)
        return actions + (self.restart(spec.role, now) if changed else [])

    def unwant(self, role: str, now: float) -> list[Action]:
        """End it, then take away what it leaves."""
        life = self.roles[role]
        life.wanted = False
        return self._step(life, Event.UNWANT, now)

    def leave(self, spec: RoleSpec, now: float) -> list[Action]:
        """A role that a former watchdog was ending, and whose process is gone: take away what it left."""
        self.roles.setdefault(spec.role, RoleLife(spec, dynamic=True))
        return self.unwant(spec.role, now)

    def recall(self, spec: RoleSpec, dynamic: bool) -> None:
        """A role without a process, of a side that is going down: `down` will take away what it left."""
        self.roles.setdefault(spec.role, RoleLife(spec, dynamic, wanted=True))

    def want_dynamic(self, specs: Iterable[RoleSpec], now: float) -> list[Action]:
        """The whole dynamic set, replacing the one before. Ignored while the side goes down."""
        if self.going_down:
            return []
        wanted = {spec.role: spec for spec in specs}
        actions: list[Action] = []
        for life in [v for v in self.roles.values() if v.dynamic and v.wanted and v.spec.role not in wanted]:
            actions += self.unwant(life.spec.role, now)
        for role, spec in wanted.items():
            known = self.roles.get(role)
            if known is None or (known.dynamic and not (known.wanted and known.spec == spec)):
                actions += self.want(spec, now, dynamic=True)
        return actions

    def down(self, now: float) -> list[Action]:
        """End everything, stage by stage."""
        self.going_down = True
        for life in self.roles.values():
            life.wanted = life.wanted or bool(life.failure)  # a retirement that failed is tried once more
        return self._next_stage(now)

    def is_down(self) -> bool:
        return self.going_down and all(map(_is_over, self.roles.values()))

    # -- what happened ---------------------------------------------------------------------------------------
    def found(
        self, spec: RoleSpec, pid: int, generation: int, now: float, dynamic: bool = False, wanted: bool = True
    ) -> list[Action]:
        """A process holds this role's name that we did not see born: adopt it (or end it, if not `wanted`)."""
        life = self.roles.setdefault(spec.role, RoleLife(spec, dynamic, wanted=wanted))
        if life.state is State.GONE:
            life.state = State.SPAWNING
        actions = self._born(life, pid, generation, now)
        if life.state is State.STARTING:
            life.deadline = now + 2 * self.bounds.silence_s  # it says hello as soon as our lane is there
        return actions

    def spawned(self, role: str, serial: int, pid: int, generation: int, now: float) -> list[Action]:
        """The answer to an order. A process nobody waits for any more is killed."""
        life = self.roles.get(role)
        if life is None or life.serial != serial or life.state not in (State.SPAWNING, State.RETIRE_ORDERED):
            return [] if life is not None and life.pid == pid else [Signal(role, pid, signal.SIGKILL)]
        if life.last_exit and life.state is State.SPAWNING:
            life.restarts += 1
        return self._born(life, pid, generation, now)

    def _born(self, life: RoleLife, pid: int, generation: int, now: float) -> list[Action]:
        life.pid, life.generation, life.was_ready, life.asked_to_end = pid, generation, False, False
        life.lived = True
        return self._step(life, Event.SPAWNED if life.wanted else Event.SPAWNED_UNWANTED, now)

    def refused(self, role: str, serial: int, why: str, now: float) -> list[Action]:
        """The spawner could not fork for us."""
        life = self.roles.get(role)
        if life is None or life.serial != serial or life.pid is not None:
            return []
        life.reason, life.early_deaths = why, life.early_deaths + 1
        if life.state is State.RETIRE_ORDERED:
            life.failure = why
        return self._step(life, Event.REFUSED if life.wanted else Event.REFUSED_UNWANTED, now)

    def orders_lost(self, now: float) -> list[Action]:
        """Another spawner: order again what the last one has not answered."""
        actions: list[Action] = []
        for life in self.roles.values():
            if life.state in (State.SPAWNING, State.RETIRE_ORDERED):
                actions += self._step(life, Event.LOST, now)
        return actions

    def ready(self, role: str, generation: int, now: float) -> list[Action]:
        life = self._present(role, generation)
        if life is None:
            return []
        if not life.was_ready and life.died_at is not None:
            life.pause_s = now - life.died_at
        if not life.was_ready:
            life.ready_at = now
        life.was_ready, life.early_deaths, life.reason = True, 0, ""
        return self._step(life, Event.READY, now)

    def heard(self, role: str, generation: int, now: float) -> list[Action]:
        """Anything it says is a sign of life."""
        life = self._present(role, generation)
        return [] if life is None else self._step(life, Event.HEARD, now)

    def starting(self, role: str, generation: int, now: float) -> None:
        """An adopted process said that it lives and is not ready yet: it has the time of a start."""
        life = self._present(role, generation)
        if life is not None and life.state is State.STARTING:
            life.deadline = max(life.deadline or 0.0, now + self.bounds.ready_s)

    def died(self, role: str, pid: int, status: int | None, reason: str | None, now: float) -> list[Action]:
        """`status` is wait(2)'s, or None when another than its parent saw the death."""
        life = self.roles.get(role)
        if life is None or life.pid != pid:
            return []
        text = describe_exit(status, reason)
        retired = life.state in ENDING
        life.pid = None
        if retired and status is None and reason is None:
            return self._step(life, Event.DIED_UNSEEN, now)
        if retired:
            life.failure = "" if status == 0 else text
            return self._step(life, Event.DIED_READY if life.wanted else Event.DIED_UNWANTED, now)
        silent_or_late = life.state is State.KILLING and life.reason
        life.last_exit = f"{text} ({life.reason})" if silent_or_late else text
        life.died_at, life.reason = now, life.last_exit
        event = self._kind_of_death(life, status, now)
        if event is Event.DIED_EARLY:
            life.reason = self._why_wait(life)
        return self._step(life, event, now)

    def _kind_of_death(self, life: RoleLife, status: int | None, now: float) -> Event:
        """Counts it, too. A death soon after ready counts for itself: a start that succeeds does not forgive it."""
        if not life.wanted:
            return Event.DIED_UNWANTED
        if status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == RoleExit.NEVER:
            return Event.DIED_NEVER
        if life.asked_to_end:
            life.sudden_deaths = 0
            return Event.DIED_READY
        if not life.was_ready:
            life.early_deaths += 1
            return Event.DIED_EARLY
        healthy = now - life.ready_at >= self.bounds.healthy_s
        life.sudden_deaths = 0 if healthy else life.sudden_deaths + 1
        return Event.DIED_EARLY if life.sudden_deaths > limits.SUDDEN_DEATHS else Event.DIED_READY

    def _why_wait(self, life: RoleLife) -> str:
        if not life.was_ready:
            return life.last_exit
        often = f"{life.sudden_deaths} times in a row within {self.bounds.healthy_s:g} s of ready"
        return f"{life.last_exit}: died {often}: started again in {self._backoff_s(life):g} s"

    # -- what the operator says ------------------------------------------------------------------------------
    def restart(self, role: str, now: float) -> list[Action]:
        """Drain, then respawn; a failed or waiting role is spawned at once."""
        self.roles[role].asked_to_end = True
        return self._step(self.roles[role], Event.RESTART, now)

    def kill(self, role: str, now: float) -> list[Action]:
        """Illegal if it has no process."""
        actions = self._step(self.roles[role], Event.KILL, now)
        self.roles[role].asked_to_end = True
        return actions

    # -- time ------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for life in list(self.roles.values()):
            if life.deadline is not None and life.deadline <= now:
                life.reason = self._why_late(life)
                actions += self._step(life, Event.LATE, now)
        return actions

    def next_deadline(self) -> float | None:
        return min((v.deadline for v in self.roles.values() if v.deadline is not None), default=None)

    # -- the step --------------------------------------------------------------------------------------------
    def _present(self, role: str, generation: int) -> RoleLife | None:
        life = self.roles.get(role)
        if life is None or life.pid is None or life.generation != generation or life.state not in ALIVE:
            return None
        return life

    def _step(self, life: RoleLife, event: Event, now: float) -> list[Action]:
        before = life.state
        try:
            life.state, dos = TABLE[before, event]
        except KeyError:
            raise Illegal(f"{life.spec.role}: {event.name} in state {before.name}") from None
        if life.state is not before or event in (Event.HEARD, Event.READY):
            life.deadline = self._deadline(life, now)
        actions = [self._action(life, do) for do in dos]
        if life.state is not before:
            if {before.shown, life.state.shown} != {"running"}:
                life.since = now
                actions.append(Show(life.spec.role))
            if life.state in (State.GONE, State.STUCK):
                actions += self._end(life, now)
        return actions

    def _end(self, life: RoleLife, now: float) -> list[Action]:
        if life.state is State.GONE and life.dynamic and not life.failure and not self.going_down:
            del self.roles[life.spec.role]
        return self._next_stage(now)

    def _next_stage(self, now: float) -> list[Action]:
        if not self.going_down:
            return []
        left = [v for v in self.roles.values() if not _is_over(v)]
        stage = min((stop_stage(v.spec.role) for v in left), default=0)
        actions: list[Action] = []
        for life in left:
            if stop_stage(life.spec.role) == stage and life.wanted:
                actions += self.unwant(life.spec.role, now)
        return actions

    def _action(self, life: RoleLife, do: Do) -> Action:
        if do in (Do.SPAWN, Do.RETIRE):
            self._serial += 1
            life.serial = self._serial
            return Spawn(life.spec, life.serial, retire=do is Do.RETIRE, urgent=do is Do.SPAWN and self._urgent(life))
        if do is Do.ASK:
            return Ask(life.spec.role)
        assert life.pid is not None
        return Signal(life.spec.role, life.pid, signal.SIGTERM if do is Do.TERM else signal.SIGKILL)

    def _urgent(self, life: RoleLife) -> bool:
        begun = [v for v in self.roles.values() if v.lived and v.state in (State.SPAWNING, State.STARTING)]
        return life.lived and len([v for v in begun if v is not life]) < limits.URGENT_STARTS

    def _deadline(self, life: RoleLife, now: float) -> float | None:
        bounds = self.bounds
        span = {
            State.WAITING: self._backoff_s(life),
            State.STARTING: bounds.ready_s,
            State.RUNNING: bounds.silence_s,
            State.ASKED: bounds.silence_s,
            State.DRAINING: bounds.drain_s,
            State.KILLING: bounds.death_s,
            State.RETIRING: bounds.retire_s,
            State.RETIRE_KILLING: bounds.death_s,
        }.get(life.state)
        if life.state is State.STARTING and life.deadline is not None:
            return life.deadline  # talking does not prolong a start
        return None if span is None else now + span

    def _backoff_s(self, life: RoleLife) -> float:
        deaths = max(life.early_deaths, life.sudden_deaths - limits.SUDDEN_DEATHS)
        doublings = min(max(deaths - 1, 0), 30)
        return float(min(self.bounds.backoff_floor_s * 2**doublings, self.bounds.backoff_ceiling_s))

    def _why_late(self, life: RoleLife) -> str:
        return {
            State.STARTING: f"not ready within {self.bounds.ready_s:g} s",
            State.RUNNING: "",
            State.ASKED: f"silent for {2 * self.bounds.silence_s:g} s",
            State.DRAINING: f"did not drain within {self.bounds.drain_s:g} s",
            State.KILLING: f"does not die: killed {self.bounds.death_s:g} s ago",
            State.RETIRING: f"clearing away took more than {self.bounds.retire_s:g} s",
            State.RETIRE_KILLING: "clearing away hangs and cannot be killed",
        }.get(life.state, life.reason)


def _is_over(life: RoleLife) -> bool:
    """Nothing more can be done for it. A role that is gone and wanted has still to be cleared away."""
    return life.state is State.STUCK or (life.state is State.GONE and not life.wanted)


def describe_exit(status: int | None, reason: str | None) -> str:
    """`killed by signal 9`, `exit 10: reason`."""
    if status is None:
        text = "killed or exited, status unknown"
    elif os.WIFSIGNALED(status):
        text = f"killed by signal {os.WTERMSIG(status)}"
    else:
        text = f"exit {os.WEXITSTATUS(status)}"
    return f"{text}: {reason}" if reason else text
