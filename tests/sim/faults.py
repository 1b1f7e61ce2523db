"""What goes wrong in a run, and when. Every fault is drawn from the world's seed."""

import errno
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from common import limits
from common.wire import Op
from tests.sim.processes import Process
from tests.sim.trouble import Failing, Trouble

if TYPE_CHECKING:
    from tests.sim.run import Run

SILENT_S = (
    limits.READY_S + (limits.SILENT_WAITS + 1) * limits.SILENCE_S
)  # a watchdog or spawner is found silent by then
STATIC = (("gadget", "usb"), ("gadget", "session"), ("host", "usb"), ("host", "session"))


class Faults:
    """`count` faults, one or two at a time; `over` when the last one has happened and was healed by the models."""

    def __init__(self, run: "Run", count: int, gap_s: float, stir: Callable[[], None]) -> None:
        self._run, self._world, self._left, self._gap_s = run, run.world, count, gap_s
        self.happened = 0
        self.stir = stir  # told of each fault and each end of one
        self._others = dict.fromkeys(run.exports, False)  # by export id: is another disk served under it now
        self._open = 0  # cables out, processes stopped
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (50, self._kill),
            (20, self._kill_soon),
            (10, self._kill_two),
            (8, self._cut),
            (6, self._reset),
            (6, self._stop_short),
            (6, self._stop_and_replace),
            (3, self._whole_side),
            (8, self._asleep_while_another_dies),
            (5, self._host_silent),
        ]
        if run.setting.disks:
            self._kinds += [
                (30, self._disk_error),
                (30, self._disk_errors_for_a_time),
                (20, self._disk_full),
                (20, self._disk_falls_short),
                (8, self._fdatasync_fails),
            ]
        if run.setting.watchdogs:
            self._kinds += [
                (25, self._watchdog_and_another),
                (10, self._spawner_and_twin),
                (5, self._all_supervision),
                (25, self._stop_for_good),
            ]
        if run.setting.others:
            self._kinds.append((40, self._another_disk))
        self._plan()

    @property
    def over(self) -> bool:
        return self._left <= 0 and self._open == 0

    def _plan(self) -> None:
        if self._left > 0:
            random = self._world.random
            gap = random.choice((0.1, 1.0, 1.0, 4.0)) * self._gap_s
            self._world.after(random.uniform(0, 2 * gap), self._one)

    def _one(self) -> None:
        self._left -= 1
        self.happened += 1
        weights = [weight for weight, _ in self._kinds]
        kind = self._world.random.choices([call for _, call in self._kinds], weights)[0]
        self._world.counts[f"fault {kind.__name__.strip('_')}"] += 1
        self.stir()
        kind()
        self._plan()

    # -- the kinds ---------------------------------------------------------------------------------------------------
    def _kill(self) -> None:
        for process in self._some(1):
            self._world.say(f"FAULT kill {process}")
            process.finish("killed")

    def _kill_two(self) -> None:
        for process in self._some(2):
            self._world.say(f"FAULT kill {process}, of two")
            process.finish("killed")

    def _kill_soon(self) -> None:
        for process in self._some(1):
            process.kill_in = self._world.random.choice((1, 2, 3, 5, 8, 20))
            self._world.say(f"FAULT {process} will be killed in {process.kill_in} effects")

    def _whole_side(self) -> None:
        side = self._world.random.choice(("gadget", "host"))
        self._world.say(f"FAULT kill all of {side}")
        self._run.kill_side(side)

    def _cut(self) -> None:
        link = self._run.link
        if not link.cable:
            return
        link.plug(False)
        self._later(self._world.random.choice((0.02, 0.2, 4.0)), lambda: link.plug(True))

    def _reset(self) -> None:
        self._world.say("FAULT port reset")
        self._run.link.reset()

    def _stop_short(self) -> None:
        for process in self._some(1):
            if not process.stopped:
                process.stop()
                self._later(self._world.random.choice((0.005, 0.2, 4.0)), process.go_on)

    def _stop_and_replace(self) -> None:
        """The watchdog finds it silent, and replaces it."""
        for process in self._some(1):
            if not process.stopped:
                process.stop()
                self._later(self._world.random.choice((0.2, 16.0)), lambda p=process: p.finish("replaced"))  # type: ignore[misc]

    def _asleep_while_another_dies(self) -> None:
        """One does not run for a moment; meanwhile its peer dies, and is there again when it wakes up."""
        two = self._some(2)
        if len(two) == 2 and not two[0].stopped:
            two[0].stop()
            self._later(self._world.random.choice((0.02, 0.1, 0.3, 4.5, 9.0)), two[0].go_on)
            self._world.soon(lambda: two[1].finish("killed"), 0, 5e-3)

    def _host_silent(self) -> None:
        """The host answers nothing for so long that the gadget parks; it may come back, or something else happens."""
        process = self._run.processes.get(("host", "usb"))
        if process is not None and process.alive and not process.stopped:
            process.stop()
            self._later(self._world.random.choice((5.0, 9.0)), process.go_on)
            then = self._world.random.choice((self._reset, self._cut, self._kill, lambda: None))
            self._later(self._world.random.uniform(4.1, 4.9), then)

    # -- watchdogs and spawners --------------------------------------------------------------------------------------
    def _of(self, side: str, *roles: str) -> list[Process]:
        found = [self._run.processes.get((side, role)) for role in roles]
        return [process for process in found if process is not None and process.alive]

    def _watchdog_and_another(self) -> None:
        """At once, or the other while nobody watches."""
        for process in self._of(self._world.random.choice(("gadget", "host")), "watchdog"):
            self._world.say(f"FAULT kill {process}, and another soon")
            process.finish("killed")
            for other in self._some(1):
                self._world.soon(lambda other=other: other.finish("killed"), 0, 30e-3)  # type: ignore[misc]

    def _spawner_and_twin(self) -> None:
        for process in self._of(self._world.random.choice(("gadget", "host")), "spawner", "twin"):
            self._world.say(f"FAULT kill {process}")
            process.finish("killed")

    def _all_supervision(self) -> None:
        for process in self._of(self._world.random.choice(("gadget", "host")), "watchdog", "spawner", "twin"):
            self._world.say(f"FAULT kill {process}")
            process.finish("killed")

    def _stop_for_good(self) -> None:
        """Whoever watches over it must find it silent. Nobody hears of a twin before it is needed. Of spawner
        and watchdog one may be dead already while the other is frozen: nobody is left to see it then, but for us."""
        supervision = self._run.supervision
        assert supervision is not None
        holders = [p for p in self._run.processes.values() if p.alive and p.role != "twin"]
        named = [p for p in holders if supervision.holder(p.side, p.role) is p and not p.stopped]
        for process in self._world.random.sample(named, min(1, len(named))):
            process.stop()
            if process.role in ("watchdog", "spawner"):
                supervision.found_silent(process, SILENT_S)
                self._later(SILENT_S + 1.0, process.go_on)

    def _another_disk(self) -> None:
        """The host machine comes back with another disk under an export's id, and then with the first one again."""
        export_id = self._world.random.choice(list(self._others))
        if self._run.has_device(export_id) and not self._others[export_id]:
            self._others[export_id] = True
            self._world.say(f"FAULT the host serves another disk as {export_id:#x}")
            self._run.serve(export_id, other=True)

            def back() -> None:
                self._others[export_id] = False
                self._run.serve(export_id, other=False)

            self._later(self._world.random.choice((0.2, 1.0, 4.0)), back)

    # -- what disks do -----------------------------------------------------------------------------------------------
    def _trouble(self) -> Trouble:
        disks = [disk for name, disk in self._run.disks.items() if name.startswith("disk")]
        trouble = self._world.random.choice(disks).trouble
        assert trouble is not None
        return trouble

    def _disk_error(self) -> None:
        op = self._world.random.choice((Op.READ, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES))
        self._world.say(f"FAULT the next {op.name} of a disk fails")
        self._trouble().fails(Failing((op,), errno.EIO, times=1))

    def _disk_errors_for_a_time(self) -> None:
        for_s = self._world.random.choice((5e-3, 0.1, 2.0))
        self._world.say(f"FAULT a disk fails for {for_s} s")
        self._fail_for((Op.READ, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES), errno.EIO, for_s)

    def _disk_full(self) -> None:
        for_s = self._world.random.choice((5e-3, 0.1, 2.0))
        self._world.say(f"FAULT a disk is full for {for_s} s")
        self._fail_for((Op.WRITE, Op.WRITE_ZEROES), errno.ENOSPC, for_s)

    def _fail_for(self, ops: tuple[Op, ...], error: int, for_s: float) -> None:
        self._trouble().fails(Failing(ops, error, inf, self._world.now + for_s))
        self._later(for_s, lambda: None)

    def _disk_falls_short(self) -> None:
        self._world.say("FAULT a disk moves less than was asked")
        self._trouble().falls_short(self._world.random.choice((1, 3, 20)))

    def _fdatasync_fails(self) -> None:
        self._world.say("FAULT the next fdatasync of a disk fails")
        self._trouble().fails(Failing((Op.FLUSH,), errno.EIO, times=1))

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._open += 1

        def done() -> None:
            self._open -= 1
            self.stir()
            call()

        self._world.after(delay_s, done)

    def _some(self, count: int) -> list:  # type: ignore[type-arg]
        living = [p for p in self._run.processes.values() if p.alive]
        return self._world.random.sample(living, min(count, len(living)))
