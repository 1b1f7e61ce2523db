"""`make chaos SEED=... N=...`: N faults from one seed, upon both sides in a guest, under two verifying workloads.

`EACH=3` instead of N strikes every event three times, and each stage's own death; `CELLS=1` strikes every event at
every stage, keeps what it measured in RESULTS, and goes on where it was ended (tests.chaos.guests shares them out, as
PART=1/2). LOAD=fio: other people's programs.

Pauses are judged by tests.chaos.budgets, and the report always says which promise was missed and how often; BUDGETS=1
makes that a failure, which on a busy machine says little about the product.

A failure prints the seed and the step, and SEED with N of that step run it again (the events are the same; when they
strike, the kernel's scheduler decides). Ends with the table, the memory of both sides, and a clean `down`.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bus.runtime import Runtime, Side, living
from tests.chaos import stages
from tests.chaos.budgets import COLD_START, FAULT_FREE, Judged, Promise, guest_limits, judged, promised, report
from tests.chaos.events import Key, bring_up, cable, kind_of
from tests.chaos.machine import Machine, memory
from tests.chaos.programs import programs
from tests.chaos.pulse import Pulse, stood_still
from tests.chaos.results import Results
from tests.chaos.scenario import Strike, draw, every, sleeps_in, table, told
from tests.chaos.stages import killed
from tests.chaos.workload import BLOCK, BlockDevice, Disk, Load, Violation, Workload
from tools.demo import inside

BLOCKS = (1024, 1536)  # of the two disks: they differ, as each is known by its size
WORKERS = 3
FLOW = 6  # completions of each workload after a fault, before the next
LIMIT_S = 90.0  # for I/O to flow again; far above every budget, so that a wedge ends with a name
DOWN_S = 10.0  # `gadget down`, in the guest
LIMIT_COLD = 60  # or so many cold starts of Python, where the guest waits for a processor of its host most of the time
COLD_STARTS = 3  # of Python, before anything of ours runs
GAP_S, GAP_EVERY = 1.0, 25  # a look at I/O without a fault, and after how many faults the next
Planned = Sequence[tuple[Strike, ...]]
Loads = Callable[[list[Path], int], Sequence[Load]]  # on these devices, under this seed
_QUIET = ("twin",)  # not struck by itself: its spawner's death shows it


def main() -> int:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"chaos: SEED={seed}", flush=True)
    results = Results(Path(os.environ["RESULTS"]) if os.environ.get("RESULTS") else None)
    part, parts = (int(number) for number in (os.environ.get("PART") or "1/1").split("/"))
    work = Path(tempfile.mkdtemp(prefix="replug-chaos-"))
    files = [work / "a.img", work / "b.img"]
    for file, blocks in zip(files, BLOCKS, strict=True):
        file.write_bytes(bytes(blocks * BLOCK))
    loads: Loads = programs if os.environ.get("LOAD") == "fio" else verifying
    for _ in range(COLD_STARTS):
        results.measure(COLD_START, _cold_start())
    limit_s = _wait_for_a_slow_machine(max(results.measured[COLD_START][-COLD_STARTS:]))
    machine, run = Machine(), Run(seed, results, limit_s, loads, slice(part - 1, None, parts))
    run.said = machine.said
    try:
        with inside.both_sides(*files) as bench:
            bring_up[:] = [partial(by_command, bench)]
            run.strike_all([Path(bench.image_device), Path(bench.scratch_device)])
            footprint = memory()
        took = bench.down_s
        run.judge_files(files)
        complaints = machine.complaints() + ([f"gadget down took {took:.1f} s"] if took > DOWN_S else [])
        if complaints:
            raise Violation("\n".join(["the machine is not as before:", *complaints]))
    except (Violation, inside.DemoFailed, RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"{results}\n{run.report}\nchaos: FAIL at step {run.step}: {error}")
        print(f"again: make chaos SEED={seed} N={run.step}", flush=True)
        return 1
    print(f"{results}\n{run.report}\n{footprint}; gadget down took {took:.1f} s")
    print(f"chaos: pass, {run.counted}, {run.verified_bytes >> 20} MiB verified, seed {seed}")
    return run.verdict()


class Run:
    """Faults one after the other, each when I/O flows again after the one before."""

    def __init__(
        self,
        seed: int,
        results: Results,
        limit_s: float = LIMIT_S,
        loads: Loads | None = None,
        part: slice = slice(None),
    ) -> None:
        self._seed, self.results, self._limit_s, self._load = seed, results, limit_s, loads or verifying
        self._part = part  # of the cells
        self.said: Callable[[], list[str]] = list  # asked after each strike: what the kernel said that it should not
        self.limits: Callable[[Mapping[str, Sequence[float]]], Mapping[Promise, float]] = guest_limits
        self._loads: Sequence[Load] = []
        self._pulse = Pulse()
        self.step, self.void, self.verified_bytes = 0, 0, 0  # void: this machine stood still, so it is not counted

    def strike_all(self, devices: list[Path], chosen: Callable[[list[Key]], Planned] | None = None) -> None:
        """What `chosen` makes of the roles that run, or what the environment asks for."""
        self._loads = self._load(devices, self._seed)
        roles = sorted(key for key in inside.pids() if kind_of(key[1]) not in _QUIET)
        plan = (chosen or self._plan)(roles)
        for self.step, events in enumerate(plan, 1):
            event, stage = told(events)
            if self.step % GAP_EVERY == 1:
                self.results.measure(FAULT_FREE, self._fault_free_gap())
            pause_s = self._told(events, event, stage)
            name = f"{event} at {stage}" if stage else event
            if self._stood_still(events):
                self.void += 1
                print(f"{self.step}/{len(plan)}: {name}: void, nobody ran for {self._pulse.gap_s:.1f} s", flush=True)
                continue
            kept = event if len(events) == 1 or os.environ.get("CELLS") else "two at once"
            self.results.add(kept, stage, pause_s, promised(events))
            print(f"{self.step}/{len(plan)}: {name}: paused {pause_s * 1000:.0f} ms", flush=True)
        for load in self._loads:
            load.stop(self._limit_s)

    @property
    def counted(self) -> str:
        return f"{self.step - self.void} faults" + (f" ({self.void} more void)" if self.void else "")

    @property
    def report(self) -> str:
        """What became of the promises on pauses."""
        return report(self._judged(), self.results.measured)

    def verdict(self) -> int:
        """The exit status of a run in which all else is right."""
        return 1 if os.environ.get("BUDGETS") and any(one.above for one in self._judged()) else 0

    def _judged(self) -> list[Judged]:
        return judged(self.results.promised, self.limits(self.results.measured))

    def _plan(self, roles: list[Key]) -> Planned:
        each, times = int(os.environ.get("EACH") or 0), int(os.environ.get("CELLS") or 0)
        if times:
            left = [struck for struck in table(roles, cable[0].sleeps)[self._part] if self._lacks(struck, times)]
            random.Random(self._seed).shuffle(left)  # what is slow or fails is met early, whatever its row
            return sorted(
                left, key=lambda struck: told(struck)[1] != ""
            )  # but first what strikes at any time: few, common
        if each:
            return [(event,) for _ in range(each) for event in every(roles, cable[0].sleeps)]
        choose = random.Random(self._seed)
        return [draw(choose, roles, cable[0].sleeps) for _ in range(int(os.environ.get("N") or 50))]

    def _told(self, events: tuple[Strike, ...], event: str, stage: str) -> float:
        """`_strike`, whose failure is written down before anything else: to take down what is wedged may fail, too."""
        try:
            return self._strike(events)
        except (Violation, RuntimeError, OSError) as error:
            if os.environ.get("CELLS"):
                self.results.add_failure(event, stage, str(error))
            print(f"FAIL at step {self.step}: {error}", flush=True)
            raise

    def _stood_still(self, events: tuple[Strike, ...]) -> bool:
        return stood_still(self._pulse.gap_s, sleeps_in(events))

    def _lacks(self, struck: tuple[Strike, ...], times: int) -> bool:
        return told(struck) not in self.results.failures and self.results.times(*told(struck)) < times

    def _fault_free_gap(self) -> float:
        """The longest gap while nothing is struck, for what is said not to pause."""
        for load in self._loads:
            load.begin_gap()
        time.sleep(GAP_S)  # the window itself
        return max(load.pause() for load in self._loads)

    def _strike(self, events: tuple[Strike, ...]) -> float:
        loads, before = self._loads, inside.pids()
        name = " and ".join(str(event) for event in events)
        self._await(f"I/O in flight before: {name}", lambda: all(load.in_flight() for load in loads))
        for load in loads:
            load.begin_gap()
        self._pulse.begin()
        marks = [load.completed for load in loads]
        for event in events:
            event.strike()
        changed = set[Key]().union(*(killed(event, before) for event in events))
        # What is looked at is compared, not asked: the processes that recover need the processor themselves.
        flows = lambda: all(load.completed >= mark + FLOW for load, mark in zip(loads, marks, strict=True))  # noqa: E731
        self._await(f"I/O to flow after: {name}", flows)
        self._await(f"successors after: {name}", lambda: _replaced(before, changed))
        marks = [max(mark, load.completed) for mark, load in zip(marks, loads, strict=True)]
        self._await(f"I/O to flow after: {name}", flows)
        now = inside.pids()
        others = [key for key, pid in before.items() if key not in changed and now.get(key) != pid]
        if others and not self._stood_still(events):
            raise Violation(f"{name}: other processes changed too: {others}")
        if said := self.said():
            raise Violation("\n".join([f"{name}:", *said]))
        return max(load.pause() for load in loads)

    def _await(self, what: str, look: object) -> None:
        end = time.monotonic() + self._limit_s
        while not look():  # type: ignore[operator]
            for load in self._loads:
                if load.violation is not None:
                    raise load.violation
            if time.monotonic() > end:
                raise Violation(f"waited {self._limit_s:g} s for {what}")
            time.sleep(0.02)

    def judge_files(self, files: list[Path]) -> None:
        judged = sum(load.judge_file(file) for load, file in zip(self._loads, files, strict=True))
        self.verified_bytes = judged + sum(load.bytes_checked for load in self._loads)


def verifying(devices: list[Path], seed: int, opened: Callable[[Path], Disk] = BlockDevice) -> list[Workload]:
    """Our own load, which knows what every block must hold."""
    return [Workload(d, b, seed, WORKERS, opened) for d, b in zip(devices, BLOCKS, strict=True)]


def _replaced(before: dict[Key, int], changed: set[Key]) -> bool:
    for side, role in changed:
        record = living(Runtime(side), role)
        if record is None or record.pid == before.get((side, role)):
            return False
    return before.keys() <= inside.pids().keys()


def by_command(bench: inside.Bench, side: Side) -> None:
    """events.bring_up of a guest: what an operator types after a side died as a whole."""
    if side is Side.GADGET:
        up = inside.replug("gadget", "up")
        if up.returncode:
            raise Violation(f"gadget up after the death of its side: exit {up.returncode}: {up.stderr}")
        return
    bench.serve.kill()
    bench.serve.wait()
    bench.serve = subprocess.Popen([*inside.REPLUG, "host", "serve", str(bench.image), str(bench.scratch)])


def _wait_for_a_slow_machine(cold_s: float) -> float:
    """Limits of waiting, which only give a wedge its name, grow with the slowness of the guest. Budgets do not."""
    limit_s = max(LIMIT_S, LIMIT_COLD * cold_s)
    inside.DEADLINE_S, stages.REACH_S = limit_s, limit_s / 3
    return limit_s


def _cold_start() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import zmq"], check=True)
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
