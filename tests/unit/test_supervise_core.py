"""The supervision table: every pair of state and event, and what follows from deaths, silence, wants and `down`."""

import signal
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common import limits
from common.errors import Illegal
from tools.supervise.core import Action, Ask, Core, Show, Signal, Spawn, describe_exit
from tools.supervise.plan import RoleSpec, SupervisionLimits
from tools.supervise.table import TABLE, Do, Event, State

BOUNDS = SupervisionLimits(60.0, 8.0, 0.05, 5.0, 3.0, 10.0, 30.0)
NO_PROCESS = {State.GONE, State.WAITING, State.SPAWNING, State.FAILED, State.RETIRE_ORDERED}
DEATHS = {Event.DIED_READY, Event.DIED_EARLY, Event.DIED_NEVER, Event.DIED_UNWANTED, Event.DIED_UNSEEN}
USB = RoleSpec("usb", "x.usb")
KILLED, EXIT_10, EXIT_20, EXIT_0 = signal.SIGKILL.value, 10 << 8, 20 << 8, 0


def orders(actions: list[Action]) -> list[Spawn]:
    return [a for a in actions if isinstance(a, Spawn)]


def signals(actions: list[Action]) -> list[signal.Signals]:
    return [a.number for a in actions if isinstance(a, Signal)]


def born(core: Core, spec: RoleSpec = USB, pid: int = 100, now: float = 0.0) -> None:
    """The spawner's answer to the last order."""
    core.spawned(spec.role, core.roles[spec.role].serial, pid, pid * 10, now)


def running(now: float = 0.0) -> Core:
    core = Core(BOUNDS)
    core.want(USB, now)
    born(core, now=now)
    core.ready("usb", 1000, now)
    assert core.roles["usb"].state is State.RUNNING
    return core


# -- the table -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("state", "event"), list(TABLE))
def test_a_process_is_ordered_only_where_there_is_none(state: State, event: Event) -> None:
    after, dos = TABLE[state, event]
    if Do.SPAWN in dos or Do.RETIRE in dos:
        assert state in NO_PROCESS or event in DEATHS
        assert after in (State.SPAWNING, State.RETIRE_ORDERED)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(Event))
def test_a_pair_that_the_table_does_not_have_is_illegal_and_changes_nothing(state: State, event: Event) -> None:
    core = Core(BOUNDS)
    core.recall(USB, dynamic=False)
    life = core.roles["usb"]
    life.state, life.pid = state, 1
    if (state, event) in TABLE:
        core._step(life, event, 0.0)
        assert life.state is TABLE[state, event][0]
    else:
        with pytest.raises(Illegal, match=f"^usb: {event.name} in state {state.name}$"):
            core._step(life, event, 0.0)
        assert life.state is state


def test_every_state_is_shown_by_a_word_and_all_states_differ() -> None:
    assert len({state.value for state in State}) == len(State) == 13


# -- deaths ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [KILLED, EXIT_0, EXIT_10, None])
def test_a_death_after_ready_is_respawned_at_once(status: int | None) -> None:
    core = running()
    assert len(orders(core.died("usb", 100, status, None, 1.0))) == 1
    assert core.roles["usb"].state is State.SPAWNING


def test_a_successor_is_urgent_and_a_first_start_is_not() -> None:
    core = Core(BOUNDS)
    assert [order.urgent for order in orders(core.want(USB, 0.0))] == [False]
    born(core)
    core.ready("usb", 1000, 0.0)
    assert [order.urgent for order in orders(core.died("usb", 100, KILLED, None, 1.0))] == [True]
    assert [order.urgent for order in orders(Core(BOUNDS).want(USB, 0.0, lived=True))] == [True]


def test_so_many_successors_are_urgent_at_once_and_no_more() -> None:
    """With 32 going before all others nobody would be left to be heard by the watchdog, nor it by the spawner."""
    core, specs = Core(BOUNDS), [RoleSpec(f"queue.{n}", "x.queue") for n in range(limits.URGENT_STARTS + 3)]
    urgent = [order.urgent for spec in specs for order in orders(core.want(spec, 0.0, lived=True))]
    assert urgent == [True] * limits.URGENT_STARTS + [False] * 3
    born(core, specs[0], pid=7)
    core.ready("queue.0", 70, 1.0)
    assert [order.urgent for order in orders(core.died("queue.0", 7, KILLED, None, 9.0))] == [False]
    for number, spec in enumerate(specs[1:]):
        born(core, spec, pid=10 + number)
        core.ready(spec.role, 100 + 10 * number, 9.0)
    assert core.roles["queue.0"].state is State.SPAWNING
    assert [order.urgent for order in orders(core.died("queue.1", 10, KILLED, None, 19.0))] == [True]


def test_deaths_before_ready_back_off_from_floor_to_ceiling_and_ready_forgets_them() -> None:
    core, now, pauses = Core(BOUNDS), 0.0, []
    core.want(USB, now)
    for pid in range(1, 12):
        born(core, pid=pid, now=now)
        assert not orders(core.died("usb", pid, EXIT_10, "why", now))
        due = core.next_deadline()
        assert due is not None
        pauses.append(round(due - now, 2))
        assert not core.tick(due - 0.001)
        now = due
        assert len(orders(core.tick(now))) == 1
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-1] == BOUNDS.backoff_ceiling_s
    assert core.roles["usb"].restarts == 10
    born(core, pid=50, now=now)
    core.ready("usb", 500, now)
    core.died("usb", 50, KILLED, None, now)
    born(core, pid=51, now=now)
    core.died("usb", 51, KILLED, None, now)
    assert core.next_deadline() == pytest.approx(now + BOUNDS.backoff_floor_s)


def test_deaths_soon_after_ready_are_respawned_at_once_at_first_and_then_back_off_with_the_reason() -> None:
    core, now, pauses = running(), 0.0, []
    for pid in range(100, 100 + limits.SUDDEN_DEATHS + 9):
        now += BOUNDS.healthy_s - 0.01
        at_once = core.died("usb", pid, EXIT_10, "why", now)
        due = core.next_deadline()
        pauses.append(0.0 if orders(at_once) else round((due or 0.0) - now, 2))
        if not orders(at_once):
            assert core.roles["usb"].state is State.WAITING
            often = f"{len(pauses)} times in a row within 1 s of ready"
            assert core.roles["usb"].reason == f"exit 10: why: died {often}: started again in {pauses[-1]:g} s"
            now += pauses[-1]
            assert len(orders(core.tick(now))) == 1
        born(core, pid=pid + 1, now=now)
        core.ready("usb", (pid + 1) * 10, now)
        core.ready("usb", (pid + 1) * 10, now + BOUNDS.healthy_s / 2)  # said again to another watchdog: not a new start
        assert core.roles["usb"].reason == ""
    assert pauses[: limits.SUDDEN_DEATHS + 3] == [0.0] * limits.SUDDEN_DEATHS + [0.05, 0.1, 0.2]
    assert pauses[-1] == BOUNDS.backoff_ceiling_s


@pytest.mark.parametrize("forgives", ["a healthy run", "a restart by the operator"])
def test_a_respawn_is_at_once_again_after(forgives: str) -> None:
    core = running()
    for pid in range(100, 100 + limits.SUDDEN_DEATHS):
        assert orders(core.died("usb", pid, KILLED, None, 0.0))
        born(core, pid=pid + 1)
        core.ready("usb", (pid + 1) * 10, 0.0)
    if forgives == "a restart by the operator":
        core.restart("usb", 0.0)
    died_at = BOUNDS.healthy_s if forgives == "a healthy run" else 0.0
    assert orders(core.died("usb", 100 + limits.SUDDEN_DEATHS, KILLED, None, died_at))
    born(core, pid=200)
    core.ready("usb", 2000, died_at)
    assert orders(core.died("usb", 200, KILLED, None, died_at)), "the count begins anew"


def test_exit_never_is_failed_with_its_reason_and_only_restart_tries_again() -> None:
    core = running()
    assert not orders(core.died("usb", 100, EXIT_20, "no such file", 1.0))
    assert core.roles["usb"].state is State.FAILED
    assert core.roles["usb"].reason == "exit 20: no such file"
    assert core.next_deadline() is None
    assert len(orders(core.restart("usb", 2.0))) == 1


def test_the_pause_is_from_death_to_ready() -> None:
    core = running()
    core.died("usb", 100, KILLED, None, 5.0)
    born(core, pid=101, now=5.01)
    core.ready("usb", 1010, 5.25)
    assert core.roles["usb"].pause_s == pytest.approx(0.25)


def test_a_death_of_another_pid_is_not_ours() -> None:
    core = running()
    assert core.died("usb", 99, KILLED, None, 1.0) == []
    assert core.roles["usb"].state is State.RUNNING


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        (KILLED, None, "killed by signal 9"),
        (EXIT_10, "why", "exit 10: why"),
        (EXIT_0, None, "exit 0"),
        (None, None, "killed or exited, status unknown"),
    ],
)
def test_exits_are_told_in_words(status: int | None, reason: str | None, text: str) -> None:
    assert describe_exit(status, reason) == text


# -- silence and time ------------------------------------------------------------------------------------------------
def test_silence_is_asked_about_before_it_is_believed() -> None:
    core = running()
    assert core.tick(7.9) == []
    assert core.tick(8.0) == [Ask("usb")]
    core.heard("usb", 1000, 9.0)
    assert core.tick(16.9) == []
    assert core.tick(17.0) == [Ask("usb")]
    assert signals(core.tick(25.0)) == [signal.SIGKILL]
    core.died("usb", 100, KILLED, None, 25.1)
    assert core.roles["usb"].last_exit == "killed by signal 9 (silent for 16 s)"


def test_a_word_from_another_generation_is_not_a_sign_of_life() -> None:
    core = running()
    core.heard("usb", 999, 7.0)
    assert core.tick(8.0) == [Ask("usb")]


def test_a_role_that_talks_but_is_not_ready_in_time_is_killed() -> None:
    core = Core(BOUNDS)
    core.want(USB, 0.0)
    born(core)
    core.heard("usb", 1000, 59.0)
    assert signals(core.tick(60.0)) == [signal.SIGKILL]
    core.died("usb", 100, KILLED, None, 60.1)
    assert core.roles["usb"].state is State.WAITING
    assert "not ready within 60 s" in core.roles["usb"].reason


def test_a_process_that_does_not_die_is_stuck_and_gets_no_successor_until_it_does() -> None:
    core = running()
    core.kill("usb", 0.0)
    assert core.tick(10.0) == [Show("usb")]
    assert core.roles["usb"].state is State.STUCK
    assert core.restart("usb", 11.0) == []
    assert core.next_deadline() is None
    assert len(orders(core.died("usb", 100, KILLED, None, 100.0))) == 1


def test_restart_drains_and_kills_what_does_not_drain() -> None:
    core = running()
    assert signals(core.restart("usb", 0.0)) == [signal.SIGTERM]
    assert signals(core.tick(3.0)) == [signal.SIGKILL]
    assert len(orders(core.died("usb", 100, KILLED, None, 3.1))) == 1


# -- orders ----------------------------------------------------------------------------------------------------------
def test_an_order_lost_with_its_spawner_is_given_again_and_the_old_answer_is_killed() -> None:
    core = Core(BOUNDS)
    first = orders(core.want(USB, 0.0))[0]
    second = orders(core.orders_lost(1.0))[0]
    assert second.serial != first.serial
    assert signals(core.spawned("usb", first.serial, 7, 70, 1.1)) == [signal.SIGKILL]
    born(core, pid=8)
    assert core.roles["usb"].pid == 8


def test_a_refused_fork_waits_and_is_tried_again() -> None:
    core = Core(BOUNDS)
    order = orders(core.want(USB, 0.0))[0]
    core.refused("usb", order.serial, "fork: ENOMEM", 0.0)
    assert core.roles["usb"].state is State.WAITING
    assert len(orders(core.tick(0.05))) == 1


def test_a_refusal_of_an_order_that_is_not_awaited_any_more_changes_nothing() -> None:
    core = running()
    serial = core.roles["usb"].serial
    assert core.refused("usb", serial, "fork: no memory", 1.0) == [], "it has been answered"
    assert core.refused("nobody", serial, "fork: no memory", 1.0) == []
    core.died("usb", 100, KILLED, None, 2.0)
    assert core.refused("usb", serial, "fork: no memory", 3.0) == [], "another order is out since"
    assert (core.roles["usb"].state, core.roles["usb"].early_deaths) == (State.SPAWNING, 0)


def test_what_a_role_left_that_a_dead_watchdog_was_ending_is_taken_away() -> None:
    core = Core(BOUNDS)
    (order,) = orders(core.leave(queue("a"), 0.0))
    assert order.retire and order.spec == queue("a")
    core.spawned("queue.a", order.serial, 7, 70, 1.0)
    core.died("queue.a", 7, EXIT_0, None, 2.0)
    assert core.roles == {}


def test_a_process_found_running_is_adopted_and_not_started_again() -> None:
    core = Core(BOUNDS)
    assert not orders(core.found(USB, 55, 550, 0.0))
    core.ready("usb", 550, 0.1)
    assert core.roles["usb"].state is State.RUNNING
    assert core.roles["usb"].restarts == 0


def test_an_adopted_process_that_says_nothing_is_killed_after_twice_the_silence() -> None:
    core = Core(BOUNDS)
    core.found(USB, 55, 550, 0.0)
    assert core.tick(15.9) == []
    assert signals(core.tick(16.0)) == [signal.SIGKILL]


# -- what is wanted --------------------------------------------------------------------------------------------------
def queue(name: str, **args: int) -> RoleSpec:
    return RoleSpec(f"queue.{name}", "x.queue", dict(args))


def test_a_dynamic_role_wanted_no_more_is_drained_then_retired_then_forgotten() -> None:
    core = Core(BOUNDS)
    core.want_dynamic([queue("a")], 0.0)
    born(core, queue("a"))
    assert signals(core.want_dynamic([], 1.0)) == [signal.SIGTERM]
    (retirement,) = orders(core.died("queue.a", 100, EXIT_0, None, 1.1))
    assert retirement.retire
    born(core, queue("a"), pid=101)
    core.died("queue.a", 101, EXIT_0, None, 1.2)
    assert core.roles == {}


def test_a_retirement_whose_end_nobody_saw_is_done_again() -> None:
    """The spawner, its parent, was killed with it: `down` told of a failure that there was not."""
    core = running()
    core.unwant("usb", 1.0)
    core.died("usb", 100, 0, None, 1.1)
    born(core, pid=101)
    [again] = orders(core.died("usb", 101, None, None, 1.2))
    assert again.retire
    born(core, pid=102)
    core.died("usb", 102, 0, None, 1.3)
    assert core.roles["usb"].state is State.GONE and not core.roles["usb"].failure


def test_a_role_wanted_again_while_it_is_retired_starts_after_that() -> None:
    core = Core(BOUNDS)
    core.want_dynamic([queue("a")], 0.0)
    born(core, queue("a"))
    core.want_dynamic([], 1.0)
    core.died("queue.a", 100, EXIT_0, None, 1.1)
    born(core, queue("a"), pid=101)
    assert not orders(core.want_dynamic([queue("a")], 1.2))
    (start,) = orders(core.died("queue.a", 101, EXIT_0, None, 1.3))
    assert not start.retire


def test_other_arguments_restart_a_role_with_them() -> None:
    core = Core(BOUNDS)
    core.want_dynamic([queue("a", depth=8)], 0.0)
    born(core, queue("a"))
    assert signals(core.want_dynamic([queue("a", depth=16)], 1.0)) == [signal.SIGTERM]
    (start,) = orders(core.died("queue.a", 100, EXIT_0, None, 1.1))
    assert start.spec == queue("a", depth=16)


def test_a_role_unwanted_before_its_pid_is_known_is_killed_when_it_is() -> None:
    core = Core(BOUNDS)
    (order,) = orders(core.want_dynamic([queue("a")], 0.0))
    assert core.want_dynamic([], 0.1) == []
    assert signals(core.spawned("queue.a", order.serial, 9, 90, 0.2)) == [signal.SIGKILL]


def test_a_retirement_that_takes_too_long_is_killed_and_told_as_a_failure() -> None:
    core = Core(BOUNDS)
    core.want_dynamic([queue("a")], 0.0)
    born(core, queue("a"))
    core.want_dynamic([], 0.0)
    core.died("queue.a", 100, EXIT_0, None, 0.0)
    born(core, queue("a"), pid=101)
    assert signals(core.tick(30.0)) == [signal.SIGKILL]
    core.died("queue.a", 101, KILLED, None, 30.1)
    assert core.roles["queue.a"].failure == "killed by signal 9"


def test_down_stops_session_then_the_others_then_usb_and_wants_nothing_any_more() -> None:
    core, ended = Core(BOUNDS), []
    for number, role in enumerate(("usb", "session", "queue.a"), 1):
        spec = RoleSpec(role, "x")
        core.want(spec, 0.0, dynamic=role.startswith("queue"))
        born(core, spec, pid=number)
        core.ready(role, number * 10, 0.0)
    actions = core.down(1.0)
    while not core.is_down():
        (sent,) = [a for a in actions if isinstance(a, Signal)]
        ended.append(sent.role)
        core.died(sent.role, sent.pid, EXIT_0, None, 1.0)
        born(core, RoleSpec(sent.role, "x"), pid=sent.pid + 10)
        actions = core.died(sent.role, sent.pid + 10, EXIT_0, None, 1.0)
        assert core.want_dynamic([queue("b")], 1.0) == []
    assert ended == ["session", "queue.a", "usb"]


def test_down_is_bounded_by_a_stuck_process() -> None:
    core = running()
    core.down(0.0)
    core.tick(3.0)
    core.tick(13.0)
    assert core.is_down()
    assert core.roles["usb"].state is State.STUCK


def test_down_of_roles_without_a_process_retires_them_and_starts_none() -> None:
    core = Core(BOUNDS)
    core.recall(USB, dynamic=False)
    assert not core.is_down()
    assert [order.retire for order in orders(core.down(0.0))] == [True]


# -- any order of events ---------------------------------------------------------------------------------------------
@dataclass
class World:
    """Processes as they really are, beside what the core believes."""

    alive: dict[int, str] = field(default_factory=dict)  # pid to role
    ordered: list[Spawn] = field(default_factory=list)
    unkillable: set[int] = field(default_factory=set)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, no role ever has two processes."""

    roles = st.sampled_from([USB, queue("a"), queue("b")])

    def __init__(self) -> None:
        super().__init__()
        self.core, self.world, self.now, self.pid = Core(BOUNDS), World(), 0.0, 0
        self.take(self.core.want(USB, 0.0))

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Spawn):
                assert action.spec.role not in self.world.alive.values(), "ordered while its process lives"
                self.world.ordered.append(action)

    @rule(names=st.sets(st.sampled_from("ab")), depth=st.integers(1, 2))
    def want(self, names: set[str], depth: int) -> None:
        self.take(self.core.want_dynamic([queue(n, depth=depth) for n in sorted(names)], self.now))

    @precondition(lambda self: self.world.ordered)
    @rule(works=st.booleans())
    def answer(self, works: bool) -> None:
        order = self.world.ordered.pop(0)
        role = order.spec.role
        if not works:
            self.take(self.core.refused(role, order.serial, "no", self.now))
            return
        self.pid += 1
        self.world.alive[self.pid] = role
        for action in self.core.spawned(role, order.serial, self.pid, self.pid, self.now):
            assert not isinstance(action, Spawn)

    @rule()
    def spawner_dies(self) -> None:
        self.world.ordered.clear()
        self.take(self.core.orders_lost(self.now))

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), status=st.sampled_from([KILLED, EXIT_0, EXIT_10, EXIT_20, None]))
    def die(self, data: st.DataObject, status: int | None) -> None:
        pid = data.draw(st.sampled_from(sorted(self.world.alive)))
        role = self.world.alive.pop(pid)
        self.take(self.core.died(role, pid, status, None, self.now))

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), is_ready=st.booleans())
    def speak(self, data: st.DataObject, is_ready: bool) -> None:
        pid = data.draw(st.sampled_from(sorted(self.world.alive)))
        say = self.core.ready if is_ready else self.core.heard
        self.take(say(self.world.alive[pid], pid, self.now))

    @rule(seconds=st.sampled_from([0.01, 1.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.core.tick(self.now))

    @rule(spec=roles, killed=st.booleans())
    def operator(self, spec: RoleSpec, killed: bool) -> None:
        if spec.role in self.core.roles:
            try:
                self.take((self.core.kill if killed else self.core.restart)(spec.role, self.now))
            except Illegal:
                assert killed or self.core.roles[spec.role].state is State.GONE

    @rule()
    def down(self) -> None:
        if self.now > 200:
            self.take(self.core.down(self.now))

    @invariant()
    def one_process_for_each_role(self) -> None:
        names = list(self.world.alive.values())
        assert len(names) == len(set(names))

    @invariant()
    def what_the_core_believes_is_so(self) -> None:
        believed = {life.pid: name for name, life in self.core.roles.items() if life.pid is not None}
        assert believed == self.world.alive


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
