"""The watchdog's shell: events from the roles lane, pidfds and the spawner into the core, its actions out.

It adopts what already runs, so its own death restarts nothing; what its successor must know lies in
tools.supervise.memory. It answers the commands `status`, `restart`, `kill`, `down` and `plan`.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from bus.control import Arguments
from bus.envelope import Body, Kind
from bus.loop import Timer
from bus.role import WATCHDOG, Role
from bus.runtime import living, take_reason
from common import limits, trace
from common.errors import Illegal, Refused, WireError
from tools.supervise.core import Action, Ask, Core, Show, Signal, Spawn
from tools.supervise.jobs import Job, Jobs
from tools.supervise.launch import open_pidfd
from tools.supervise.link import SpawnerLink
from tools.supervise.memory import History, Memory, failures_path
from tools.supervise.notify import Notifier, summary
from tools.supervise.plan import Plan, RoleSpec, write_json
from tools.supervise.report import Report
from tools.supervise.table import State


class Watchdog:
    """Handlers of the watchdog role. All decisions are tools.supervise.core's."""

    def __init__(self, role: Role) -> None:
        self._role, self._loop, self._runtime = role, role.loop, role.runtime
        self._plan = Plan.load(role.runtime)
        self._memory = Memory.load(role.runtime)
        self._core = Core(self._plan.bounds)
        self._pidfds: dict[int, int] = {}  # by pid: of every process the core knows
        self._hellos: dict[str, tuple[int, bool]] = {}  # said before the spawner told us of the process
        self._timer: Timer | None = None
        self._shutdown_sent = False
        self._report = Report(role.runtime)
        self._lane = role.serve("roles", self._on_hello, self._on_message)
        self._link = SpawnerLink(self._loop, role.log, role.runtime, self._spawner_up, self._from_spawner)
        self._jobs = Jobs(self._order_job, self._job_done, self._end_stray)
        self._recover()
        for name, method in (
            ("status", self._status),
            ("restart", self._restart),
            ("kill", self._kill),
            ("down", self._down),
            ("plan", self._show_plan),
        ):
            role.method(name, method)
        self._loop.before_wait(self._before_wait)
        self._notifier = Notifier()
        if self._notifier.pings_every_s is not None:
            self._loop.beat(self._notifier.pings_every_s, self._notifier.alive)
        self._notifier.ready()
        self._notifier.alive()  # a predecessor may have used up the time
        role.ready()

    # -- start: recovery of whatever is there --------------------------------------------------------------------
    def _recover(self) -> None:
        """Adopt the living, order the missing (they are sent when the spawner greets us)."""
        now = self._loop.now()
        going = self._memory.down
        for spec in self._plan.roles:
            self._take_over(spec, now, dynamic=False, wanted=True)
        for spec in self._memory.wanted:
            self._take_over(spec, now, dynamic=True, wanted=True)
        for spec in self._memory.leaving:
            self._take_over(spec, now, dynamic=True, wanted=False)
        for name, past in self._memory.history.items():
            life = self._core.roles.get(name)
            if life is not None:
                life.restarts, life.last_exit = past.restarts, past.last_exit
                life.pause_s = None if past.pause_ms is None else past.pause_ms / 1000
        if going:
            self._do(self._core.down(now))

    def _take_over(self, spec: RoleSpec, now: float, dynamic: bool, wanted: bool) -> None:
        if self._adopt(spec, dynamic, wanted):
            return
        if not wanted:
            self._do(self._core.leave(spec, now))
        elif self._memory.down:  # not started again only to be ended: what it left is taken away
            self._core.recall(spec, dynamic)
        else:
            self._do(self._core.want(spec, now, dynamic, lived=spec.role in self._memory.history))

    def _adopt(self, spec: RoleSpec, dynamic: bool, wanted: bool) -> bool:
        """Is there a process of that name that the core does not know? Then it does now."""
        record = living(self._runtime, spec.role)
        fd = open_pidfd(record) if record is not None else None
        if record is None or fd is None:
            return False
        self._role.log.info(f"{spec.role}: adopted, pid {record.pid}, generation {record.generation}")
        self._watch(spec.role, record.pid, fd)
        now = self._loop.now()
        self._do(self._core.found(spec, record.pid, record.generation, now, dynamic, wanted))
        self._apply_hello(spec.role)
        return True

    # -- actions -------------------------------------------------------------------------------------------------
    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn():
                    self._order(action)
                case Signal(role, pid, number):
                    self._signal(role, pid, number)
                case Ask(role):
                    self._lane.send(role, Kind.NOTE, {"note": "alive?"})
                case Show(role):
                    self._show(role)

    def _order(self, order: Spawn) -> None:
        spec = order.spec
        life = self._core.roles[spec.role]
        if life.serial != order.serial or life.pid is not None:
            return  # overtaken by a later event
        # A dead spawner may have forked it without telling us; then the process is there, and another must not be.
        if not order.retire and self._adopt(spec, life.dynamic, life.wanted):
            return
        if order.retire:
            self._jobs.end_all_of(spec.role)
            self._end_unknown(spec.role)
        self._send_order(spec, order.serial, "retire" if order.retire else "start", order.urgent)

    def _send_order(self, spec: RoleSpec, serial: int, function: str, urgent: bool = False) -> None:
        fields = {"role": spec.role, "entry": spec.entry, "args": spec.args, "function": function, "urgent": urgent}
        trace.point("watchdog.ordering")
        self._link.send({"do": "spawn", "serial": serial, **fields})

    def _order_job(self, job: Job) -> None:
        self._role.log.info(f"{job.spec.role}: job {job.function}")
        self._send_order(job.spec, job.serial, job.function)

    def _job_done(self, job: Job, ok: bool, reason: str) -> None:
        note = {"note": "job_done", "function": job.function, "ok": ok, "reason": reason}
        self._lane.send(job.spec.role, Kind.NOTE, note)

    def _end_stray(self, pid: int) -> None:
        if pid in self._pidfds:
            signal.pidfd_send_signal(self._pidfds[pid], signal.SIGKILL)

    def _end_unknown(self, role: str) -> None:
        """Whoever has the name was forked for a predecessor, and took it after we had looked. The retirement waits."""
        record = living(self._runtime, role)
        fd = open_pidfd(record) if record is not None else None
        if fd is not None:
            with contextlib.suppress(ProcessLookupError):  # it dies by itself
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)

    def _signal(self, role: str, pid: int, number: signal.Signals) -> None:
        fd = self._pidfds.get(pid)
        self._role.log.info(f"{role}: {number.name} to {pid}")
        try:
            if fd is not None:
                signal.pidfd_send_signal(fd, number)
            if number is signal.SIGTERM and fd is not None:
                signal.pidfd_send_signal(fd, signal.SIGCONT)  # a stopped process could not drain
        except ProcessLookupError:
            return  # dead already: its pidfd says so

    def _show(self, role: str) -> None:
        life = self._core.roles.get(role)
        state, reason = (life.state, life.reason) if life is not None else (State.GONE, "")
        self._role.log.info(f"{role}: {state.name.lower()}" + (f": {reason}" if reason else ""))
        note = {"note": "role", "role": role, "state": state.shown, "reason": reason}
        self._lane.send("session", Kind.NOTE, note)

    # -- the spawner ---------------------------------------------------------------------------------------------
    def _spawner_up(self, greeting: dict[str, Any]) -> None:
        self._do(self._core.orders_lost(self._loop.now()))
        self._jobs.order_again()

    def _from_spawner(self, event: dict[str, Any], received: list[int]) -> None:
        now = self._loop.now()
        match event.get("event"):
            case "spawned":
                trace.point("watchdog.birth.told")
                role, pid, generation = event["role"], event["pid"], event["generation"]
                self._watch(role, pid, received[0])
                if not self._jobs.spawned(event["serial"], pid):
                    self._do(self._core.spawned(role, event["serial"], pid, generation, now))
                    self._apply_hello(role)
            case "refused" if not self._jobs.refused(event["serial"], event["why"]):
                self._do(self._core.refused(event["role"], event["serial"], event["why"], now))
            case "exit":
                self._dead(event["role"], event["pid"], event["status"])
            case "error":
                self._role.log.error(f"spawner: {event.get('why')}")

    def _watch(self, role: str, pid: int, fd: int) -> None:
        if pid in self._pidfds:
            os.close(fd)
            return
        self._pidfds[pid] = fd
        self._loop.watch(fd, lambda: self._pidfd_says(role, pid))

    def _pidfd_says(self, role: str, pid: int) -> None:
        """Dead. If the spawner is its parent it tells the status in a moment; else nobody can."""
        self._loop.unwatch(self._pidfds[pid])
        wait_s = limits.EXIT_WAIT_S if pid in self._link.children else 0.0
        self._loop.after(wait_s, lambda: self._dead(role, pid, None))

    def _dead(self, role: str, pid: int, status: int | None) -> None:
        fd = self._pidfds.pop(pid, None)
        if fd is None:
            return  # told before
        self._loop.unwatch(fd)
        os.close(fd)
        if self._jobs.died(pid, status, lambda name: take_reason(self._runtime, name)):
            return
        life = self._core.roles.get(role)
        if life is None or life.pid != pid:
            return  # a stray: its death changes nothing
        trace.point("watchdog.death.seen")
        reason = take_reason(self._runtime, role)
        self._do(self._core.died(role, pid, status, reason, self._loop.now()))
        if role in self._core.roles:
            self._role.log.info(f"{role}: pid {pid} {self._core.roles[role].last_exit}")

    # -- the roles -----------------------------------------------------------------------------------------------
    def _on_hello(self, role: str, generation: int, hello: Body) -> None:
        if not isinstance(hello, dict):
            raise WireError("hello is not a dict")
        self._hellos[role] = (generation, hello.get("ready") is True)
        self._apply_hello(role)
        if role == "session":
            for life in self._core.roles.values():
                if life.dynamic:
                    self._show(life.spec.role)

    def _apply_hello(self, role: str) -> None:
        life, said = self._core.roles.get(role), self._hellos.get(role)
        if life is None or said is None or life.generation != said[0]:
            return
        generation, is_ready = said
        now = self._loop.now()
        if is_ready:
            self._do(self._core.ready(role, generation, now))
        else:
            self._core.starting(role, generation, now)

    def _on_message(self, role: str, kind: Kind, body: Body) -> None:
        if kind is not Kind.NOTE or not isinstance(body, dict):
            raise WireError(f"{kind} is not a note")
        generation = self._lane.generation_of(role) or 0
        now = self._loop.now()
        match body.get("note"):
            case "ready":
                self._hellos[role] = (generation, True)
                self._apply_hello(role)
            case "want" if role == "session":
                self._want(body)
            case "job" if (life := self._core.roles.get(_job_of(role, body))) and not self._core.going_down:
                self._jobs.ask(life.spec, body.get("function"))
        self._do(self._core.heard(role, generation, now))

    def _want(self, body: dict[str, Any]) -> None:
        roles = body.get("roles")
        if not isinstance(roles, list) or len(roles) > limits.MAX_ROLES:
            raise WireError("want without a list of roles")
        try:
            specs = [RoleSpec.of(fields) for fields in roles]
        except Refused as error:
            raise WireError(str(error)) from None
        self._do(self._core.want_dynamic(specs, self._loop.now()))

    # -- before each sleep ---------------------------------------------------------------------------------------
    def _before_wait(self) -> None:
        memory = self._present_memory()
        if memory != self._memory:
            memory.save(self._runtime)
            self._memory = memory
        self._notifier.status(self._summary())
        if self._core.is_down() and not self._shutdown_sent:
            self._finish()
        due = self._core.next_deadline()
        if due is not None and (self._timer is None or self._timer.handler is None or due < self._timer.due):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.after(max(0.0, due - self._loop.now()), self._tick)

    def _summary(self) -> str:
        lives = self._core.roles.values()
        return summary((v.spec.role, v.state.shown, v.failure or v.reason) for v in lives)

    def _tick(self) -> None:
        self._timer = None
        self._do(self._core.tick(self._loop.now()))

    def _present_memory(self) -> Memory:
        dynamic = [v for v in self._core.roles.values() if v.dynamic]
        return Memory(
            tuple(v.spec for v in dynamic if v.wanted),
            tuple(v.spec for v in dynamic if not v.wanted and (v.state is not State.GONE or v.failure)),
            self._core.going_down,
            {v.spec.role: History(v.restarts, v.last_exit, _ms(v.pause_s)) for v in self._core.roles.values()},
        )

    def _finish(self) -> None:
        failures = {
            v.spec.role: v.failure or v.reason for v in self._core.roles.values() if v.failure or v.state is State.STUCK
        }
        if failures:
            write_json(failures_path(self._runtime), failures)
            self._role.log.error(f"down, but not all is gone: {json.dumps(failures)}")
        self._shutdown_sent = self._link.send({"do": "shutdown", "keep_directory": bool(failures)})

    # -- commands ------------------------------------------------------------------------------------------------
    def _known(self, arguments: Arguments) -> str:
        role = str(arguments.get("role"))
        if role not in self._core.roles and role not in self._own_commands():
            known = ", ".join([*self._core.roles, *self._own_commands()])
            raise Refused(f"{role}: no such role here: the roles are {known}")
        return role

    def _own_commands(self) -> dict[str, Callable[[], None]]:
        """How to end the two that the core does not run: each is replaced by the other."""
        return {WATCHDOG: lambda: self._loop.stop(0), "spawner": lambda: self._kill_spawner()}

    def _kill_spawner(self) -> None:
        record = living(self._runtime, "spawner")
        fd = open_pidfd(record) if record is not None else None
        if fd is not None:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)

    def _restart(self, arguments: Arguments) -> dict[str, Any]:
        """Answers at once with what it was; ask `status` until the generation is another and the state `running`."""
        return self._end(self._known(arguments), self._core.restart)

    def _kill(self, arguments: Arguments) -> dict[str, Any]:
        return self._end(self._known(arguments), self._core.kill)

    def _end(self, role: str, how: Callable[[str, float], list[Action]]) -> dict[str, Any]:
        own = self._own_commands().get(role)
        if own is not None:
            record = living(self._runtime, role)
            self._loop.after(0.05, own)  # after the answer has left
            pid, generation = (record.pid, record.generation) if record is not None else (None, 0)
            return {"role": role, "pid": pid, "generation": generation}
        life = self._core.roles[role]
        before = {"role": role, "pid": life.pid, "generation": life.generation}
        try:
            self._do(how(role, self._loop.now()))
        except Illegal:
            raise Refused(f"{role}: has no process now: {life.state.name.lower()}: {life.reason}") from None
        return before

    def _down(self, arguments: Arguments) -> dict[str, Any]:
        self._role.log.info("going down")
        self._do(self._core.down(self._loop.now()))
        return {"stopping": [v.spec.role for v in self._core.roles.values() if v.state is not State.GONE]}

    def _show_plan(self, arguments: Arguments) -> dict[str, Any]:
        roles = [{"role": r.role, "entry": r.entry, "args": r.args} for r in self._plan.roles]
        return {"side": self._plan.side.value, "instance": self._plan.instance, "roles": roles}

    def _status(self, arguments: Arguments) -> dict[str, Any]:
        return self._report.status(self._core, self._plan, self._link.twin, self._link.lost_at, self._loop.now())


def _job_of(role: str, body: dict[str, Any]) -> str:
    """Whose job is asked for: one's own, or, by the session, that of a role it wants."""
    return str(body.get("role", role)) if role == "session" else role


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def start(role: Role) -> None:
    Watchdog(role)
