"""Both sides' supervision in a run: the watchdog is the product's, and watchdog, spawner and twin die like others.

What stands under it: names in the runtime directory, pidfds, signals, the watchdog's memory, forks (model_spawner), and
whoever starts a side again when all three are dead (systemd, `gadget up`). What is judged: nobody ends or starts anew
what is healthy, and at rest each watchdog has each role as the process that really is there, and nothing else lives.
"""

from __future__ import annotations

import importlib
import json
import re
import signal
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bus.role import WATCHDOG
from bus.runtime import ProcessRecord, Side
from common import limits
from common.errors import Gone, RoleExit
from tests.sim import model_spawner
from tests.sim.model_spawner import End, Spawner, Store
from tests.sim.processes import Process, SimThread
from tests.sim.world import Waitable
from tools.supervise.birth import RETIRE, START
from tools.supervise.notify import Notifier
from tools.supervise.plan import Plan, RoleSpec
from tools.supervise.table import State

if TYPE_CHECKING:
    from tests.sim.run import Run

SIDES = ("gadget", "host")
OWN = ("watchdog", "spawner", "twin")
_UP_S = 1.0  # until somebody starts a side again whose supervision is dead as a whole
_KNOWN_S = 50e-3  # an order may be on its way while its role's process, forked for another, gets ready


class Supervision:
    """Of a run with `watchdogs` in its setting."""

    def __init__(self, run: Run) -> None:
        self._run, self.world = run, run.world
        self.listening: dict[str, Spawner | None] = dict.fromkeys(SIDES)
        self.everyone: list[Process] = []
        self._names: dict[tuple[str, str], Process] = {}
        self._parents: dict[Process, Process | None] = {}
        self._pidfds: dict[int, tuple[Process, Waitable]] = {}  # by number
        self._files: dict[str, str] = {}
        self._going_down = False
        self._answered_down: set[str] = set()

    def __str__(self) -> str:
        return self.left() if self._going_down else self.amiss()

    # -- what the run asks -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        for side in SIDES:
            self.launch(side)

    def launch(self, side: str) -> Process:
        """Execute a spawner: a Python that starts."""
        process = self.newborn(side, "spawner", None)
        self.show(process)
        self._soon(process, lambda: self._be_spawner(process), 0.1, 2.0)
        return process

    def _be_spawner(self, process: Process) -> None:
        Spawner(self, process, {})

    def _soon(self, process: Process, first: Callable[[], None], least_s: float, most_s: float) -> None:
        """What it does first, when it has come so far."""
        self.world.soon(lambda: process.loop.post(first), least_s, most_s)

    def amiss(self) -> str:
        """What is not as it should be at rest; empty if all is."""
        return "; ".join(part for side in SIDES for part in self._amiss(side))

    def _amiss(self, side: str) -> list[str]:
        found = []
        shell = self._run.shells.get((side, WATCHDOG))
        if any(self.holder(side, role) is None for role in OWN[:2]) or shell is None:
            return [f"{side} has no watchdog or no spawner"]
        spawner, watchdog = self.listening[side], self.holder(side, WATCHDOG)
        if spawner is None or not spawner.process.alive or spawner.twin is None or not spawner.twin.process.alive:
            return [f"{side} has no spawner with a twin"]
        known = {watchdog, spawner.process, spawner.twin.process}
        for name, life in shell._core.roles.items():
            process = self.holder(side, name)
            known.add(process)
            if life.state not in (State.RUNNING, State.ASKED) or process is None or process.pid != life.pid:
                found.append(f"{side} {name} is {life.state.name} with pid {life.pid}, there is {process}")
        found += [f"{process} is stopped" for process in known if process is not None and process.stopped]
        if side == "gadget" and "usb" not in spawner.store.keys() & spawner.twin.store.keys():
            found.append("what gadget usb has is not kept")
        roles = {role for where, role in self._run.wanted if where == side}
        if roles - shell._core.roles.keys():
            found.append(f"{side}: not known to the watchdog: {roles - shell._core.roles.keys()}")
        strays = [str(p) for p in self.everyone if p.side == side and p.alive and p not in known]
        return found + [f"nobody's: {stray}" for stray in strays]

    def forget(self, side: str) -> None:
        """Its runtime directory is lost: another boot of its machine."""
        self._files.pop(side, None)

    def down(self) -> None:
        """`replug gadget down` and `host down`, and someone dies on the way. All is to be gone, whoever it is."""
        self._going_down = True
        for side in SIDES:
            self._ask_down(side)
            for process in self.world.random.sample(self.everyone, 1):
                self.world.say(f"FAULT kill {process} while going down")
                self.world.soon(partial(process.finish, "killed"), 0, 50e-3)

    def _ask_down(self, side: str) -> None:
        """Again until one has answered, as the command does (tools.cli.side): the first may die before it has."""
        if side in self._answered_down:
            return
        watchdog, shell = self.holder(side, WATCHDOG), self._run.shells.get((side, WATCHDOG))
        if watchdog is not None and watchdog.alive and shell is not None:
            watchdog.do(partial(self._hear_down, side, shell))
            watchdog.wake()
        self.world.after(_UP_S, lambda: self._ask_down(side))

    def _hear_down(self, side: str, shell: Any) -> None:
        shell._down({})
        self._answered_down.add(side)

    def left(self) -> str:
        """What there is still after `down`."""
        there = [str(p) for p in self.everyone if not p.dead]
        there += [f"/dev/ublkb{number}" for number in self._run.driver.devices]
        return ", ".join(there + ([] if self._run.mounted is None else ["the gadget's configfs tree"]))

    def kill_side(self, side: str) -> None:
        for process in list(self.everyone):
            if process.side == side:
                process.finish("killed with its side")

    # -- names and processes -----------------------------------------------------------------------------------------
    def newborn(self, side: str, role: str, parent: Process | None) -> Process:
        process = Process(self.world, side, role, self.world.new_generation(side, role))
        self.everyone = [p for p in self.everyone if not p.dead]
        self.everyone.append(process)
        self._parents[process] = parent
        process.died = lambda why: self._gone(process, why)
        self.world.say(f"{process} is forked")
        return process

    def show(self, process: Process) -> None:
        """To whom faults happen."""
        self._run.processes[process.side, process.role] = process

    def rename(self, process: Process, role: str) -> None:
        if self._run.processes.get((process.side, process.role)) is process:
            del self._run.processes[process.side, process.role]
        process.role = role
        self.show(process)

    def holder(self, side: str, role: str) -> Process | None:
        process = self._names.get((side, role))
        return None if process is None or process.dead else process

    def take_name(self, process: Process) -> None:
        """bus.runtime.take_name: a flock, so it ends with the process."""
        process.effect("take name")
        if self.holder(process.side, process.role) is not None:
            raise Gone(f"{process.role}: another process has this name")
        self._names[process.side, process.role] = process

    def _gone(self, process: Process, why: str) -> None:
        for other, waitable in list(self._pidfds.values()):
            if other is process:
                waitable.poke()
        parent = self._parents[process]
        spawner = None if parent is None else self.listening[process.side]
        if spawner is not None and spawner.process is parent and parent.alive:
            parent.loop.post(partial(spawner.reap, process, _status_of(why)))
        if process.role in OWN:
            self.world.counts[f"end of {process.side} {process.role}"] += 1
            self.world.after(_UP_S, lambda: self._up_again(process.side))

    def found_silent(self, process: Process, within_s: float) -> None:
        """One of watchdog and spawner has stopped: the other one is to end it. If that was there all the time."""
        other = self.holder(process.side, "watchdog" if process.role == "spawner" else "spawner")

        def judge() -> None:
            there = other is not None and other.alive and not other.was_stopped
            if there and process.alive and process.stopped:
                self.world.violate(f"{process} was silent for {within_s:g} s, and {other} did nothing")

        self.world.after(within_s, judge)

    def _up_again(self, side: str) -> None:
        if not self._going_down and not any(p.alive for p in self.everyone if p.side == side and p.role in OWN):
            self.world.counts[f"{side} started again"] += 1
            self.launch(side)

    def healthy(self, process: Process) -> bool:
        if self._going_down:
            return False
        holds = self.holder(process.side, process.role) is process
        return holds and process.alive and not process.was_stopped and (process.role in OWN or self._known(process))

    def _known(self, process: Process) -> bool:
        """Is this the role's process, and has been for a while?"""
        role = self._run.roles.get((process.side, process.role))
        return role is not None and role.is_process(process) and role.ready_at < self.world.now - _KNOWN_S

    def judge_order(self, spawner: Process, role: str, function: str) -> None:
        there = self.holder(spawner.side, role)
        if function == START and there is not None and self._known(there):
            self.world.violate(f"another {role} is ordered, and {there} is not dead")
        if function == RETIRE and not self._going_down:
            self.world.violate(f"{spawner.side} {role} is cleared away, and it is wanted")

    # -- forks -------------------------------------------------------------------------------------------------------
    def fork(self, parent: Process, spec: RoleSpec, function: str, kept: dict[str, int]) -> Process:
        process = self.newborn(parent.side, spec.role, parent)
        self.hold(process, {}, spec.role, kept)
        if function == RETIRE:
            self._soon(process, lambda: self._retire(process, spec), 1e-3, 60e-3)
        elif function == START:
            self._soon(process, lambda: self._be_role(process, spec, kept), 1e-3, 60e-3)
        else:
            process.role = f"{spec.role}:{function}"  # it takes no name
            self.world.counts["jobs"] += 1
            self.world.soon(lambda: process.finish("stopped by itself with 0"), 1e-3, 30e-3)
        return process

    def _be_role(self, process: Process, spec: RoleSpec, kept: dict[str, int]) -> None:
        self.take_name(process)
        self.show(process)
        self._run.live(process, spec.entry, spec.args, kept)

    def _retire(self, process: Process, spec: RoleSpec) -> None:
        try:
            self.take_name(process)
        except Gone:
            process.loop.after(10e-3, lambda: self._retire(process, spec))
            return
        retire = getattr(importlib.import_module(spec.entry), RETIRE, None)

        def work() -> None:
            if retire is not None:
                retire(self.runtime(process.side), spec.role, spec.args)
            process.end("stopped by itself with 0")

        SimThread(work).start()

    def hold(self, process: Process, store: Store, role: str, fds: dict[str, int]) -> None:
        """`process` has these descriptors (of a FunctionFS) as well, in its store, in the place of others."""
        old, store[role] = store.get(role), fds
        functions = self._run.link.functions
        if fds:
            function = functions[fds["ep0"]][0]
            function.holders.add(process)
            process.on_death.append(lambda: function.release(process))
        if old and old.get("ep0") != fds.get("ep0"):
            functions[old["ep0"]][0].release(process)

    # -- the kernel and the runtime directory, as the product calls them -----------------------------------------------
    def runtime(self, side: str) -> Any:
        return self._run.runtime(side)

    def log(self, process: Process) -> Any:
        return self._run.log(process)

    def living(self, runtime: Any, role: str) -> ProcessRecord | None:
        process = self.holder(runtime.side, role)
        return None if process is None else ProcessRecord(role, process.pid, process.generation, process.generation)

    def open_pidfd(self, process: Process) -> int:
        waitable = Waitable(self.world, lambda: process.dead)
        self._pidfds[waitable.number] = process, waitable
        return waitable.number

    def pidfd_of(self, record: ProcessRecord) -> int | None:
        process = next((p for p in self.everyone if p.pid == record.pid and not p.dead), None)
        return None if process is None else self.open_pidfd(process)

    def close(self, fd: int) -> None:
        self._pidfds.pop(fd, None)

    def pidfd_signal(self, fd: int, number: signal.Signals) -> None:
        self._strike(self._pidfds[fd][0], number)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        process = next((p for p in self.everyone if p.pid == pid and not p.dead), None)
        if process is None:
            raise ProcessLookupError
        self._strike(process, number)

    def _strike(self, process: Process, number: signal.Signals) -> None:
        self._run.current_process.effect(f"kill {number.name}")
        if number is signal.SIGCONT:
            return process.go_on()
        # What was said to a watchdog that was frozen for so long it has not read when it looks at the clock.
        if self.healthy(process) and self._run.current_process.longest_stop_s < limits.READY_S:
            self.world.violate(f"{self._run.current} sends {number.name} to {process}, and it is healthy")
        self.world.counts[f"sent {number.name}"] += 1
        if number is signal.SIGKILL:
            process.finish(f"killed by {self._run.current}")
        else:
            role = self._run.roles[process.side, process.role]
            process.loop.post(role.on_drain)

    def plan(self, runtime: Any) -> Plan:
        wanted = [(role, how) for (side, role), how in self._run.wanted.items() if side == runtime.side]
        static = tuple(RoleSpec(role, *how) for role, how in wanted if role in ("usb", "session"))
        return Plan(Side(runtime.side), runtime.instance, static)

    def _write_json(self, path: Any, fields: dict[str, Any]) -> None:
        self._run.current_process.effect("write memory")
        self._files[path.name] = json.dumps(fields)

    def _failed(self, path: Any, fields: dict[str, Any]) -> None:
        self.world.violate(f"down, but not all is gone: {fields}")

    def _memory_path(self, runtime: Any) -> Any:
        def read_text() -> str:
            if runtime.side not in self._files:
                raise FileNotFoundError(runtime.side)
            return self._files[runtime.side]

        return SimpleNamespace(name=runtime.side, read_text=read_text)

    def substitutes(self) -> list[tuple[str, str, Any]]:
        watchdog, link, keeper, keeping = (
            "tools.supervise.watchdog",
            "tools.supervise.link",
            "tools.supervise.keeper",
            "bus.keeping",
        )
        sockets = SimpleNamespace(socket=self._socket, AF_UNIX=0, SOCK_SEQPACKET=0)
        calls = SimpleNamespace(close=self.close, kill=self.kill, fspath=str)
        signals = SimpleNamespace(
            SIGKILL=signal.SIGKILL,
            SIGTERM=signal.SIGTERM,
            SIGCONT=signal.SIGCONT,
            pidfd_send_signal=self.pidfd_signal,
        )
        messages = SimpleNamespace(send=model_spawner.send, receive=model_spawner.receive)
        return [
            (watchdog, "Plan", SimpleNamespace(load=self.plan)),
            (watchdog, "living", self.living),
            (watchdog, "open_pidfd", self.pidfd_of),
            (watchdog, "failures_path", lambda runtime: SimpleNamespace(name="failures")),
            (watchdog, "write_json", self._failed),
            (watchdog, "take_reason", lambda runtime, role: None),
            (watchdog, "signal", signals),
            (watchdog, "os", calls),
            (watchdog, "Notifier", partial(Notifier, {})),
            ("tools.supervise.memory", "write_json", self._write_json),
            ("tools.supervise.memory", "memory_path", self._memory_path),
            (link, "socket", sockets),
            (link, "fdsocket", messages),
            (link, "os", calls),
            (link, "living", self.living),
            (link, "kill", self._kill_all),
            (link, "launch", self._launched),
            (keeper, "living", self.living),
            (keeper, "open_pidfd", self.pidfd_of),
            (keeper, "os", calls),
            (keeper, "time", SimpleNamespace(monotonic=lambda: self.world.now)),
            (keeping, "socket", sockets),
            (keeping, "fdsocket", messages),
            (keeping, "os", calls),
        ]

    def _socket(self, family: int, kind: int) -> End:
        return End(self._run.current_process)

    def _kill_all(self, records: list[ProcessRecord]) -> None:
        for record in records:
            self.kill(record.pid)

    def _launched(self, runtime: Any) -> Any:
        self.world.counts["spawner executed by the watchdog"] += 1
        process = self.launch(runtime.side)
        return SimpleNamespace(poll=lambda: None if process.alive else 0)


def _status_of(why: str) -> int:
    """wait(2)'s, from how a process ended."""
    if why.startswith(("killed", "replaced")):
        return int(signal.SIGKILL)
    stopped = re.match(r"stopped by itself with (\d+)", why)
    code = int(stopped[1]) if stopped else RoleExit.NEVER if why.startswith("refused") else RoleExit.RESTART
    return int(code) << 8
