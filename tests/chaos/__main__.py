"""`make chaos SEED=... N=...`: N faults from one seed, upon both sides in a guest, under two verifying workloads.

`make chaos EACH=3` strikes every event of the table, each kill point included, three times instead.

A failure prints the seed and the step, and SEED with N of that step run it again (the events are the same; when they
strike, the kernel's scheduler decides). Ends with the table, the memory of both sides, and a clean `down`.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bus.runtime import Side
from tests.chaos.scenario import Event, draw, every, kind_of, victims
from tests.chaos.table import Table
from tests.chaos.workload import BLOCK, Violation, Workload
from tools.demo import inside

BLOCKS = (1024, 1536)  # of the two disks: they differ, as each is known by its size
WORKERS = 3
FLOW = 6  # completions of each workload after a fault, before the next
LIMIT_S = 90.0  # for I/O to flow again; far above every budget, so that a wedge ends with a name
_QUIET = ("twin",)  # not struck by itself: its spawner's death shows it


def main() -> int:
    seed = int(os.environ.get("SEED") or time.time())
    count, each = int(os.environ.get("N") or 50), int(os.environ.get("EACH") or 0)
    print(f"chaos: SEED={seed} " + (f"EACH={each}" if each else f"N={count}"), flush=True)
    choose, table = random.Random(seed), Table()
    work = Path(tempfile.mkdtemp(prefix="replug-chaos-"))
    files = [work / "a.img", work / "b.img"]
    for file, blocks in zip(files, BLOCKS, strict=True):
        file.write_bytes(bytes(blocks * BLOCK))
    cold = _cold_start()
    step = 0
    try:
        with inside.both_sides(*files) as bench:
            devices = [Path(bench.image_device), Path(bench.scratch_device)]
            loads = [Workload(d, b, seed, WORKERS) for d, b in zip(devices, BLOCKS, strict=True)]
            roles = sorted(key for key in inside.pids() if kind_of(key[1]) not in _QUIET)
            plan = _plan(choose, roles, each, count)
            for step, events in enumerate(plan, 1):
                _strike(events, loads, table, f"{step}/{len(plan)}")
            for load in loads:
                load.stop(LIMIT_S)
            memory = _memory()
        judged = sum(load.judge_file(file) for load, file in zip(loads, files, strict=True))
    except (Violation, inside.DemoFailed, RuntimeError) as error:
        inside._tell_logs()
        print(f"{table}\nchaos: FAIL at step {step}: {error}\nagain: make chaos SEED={seed} N={step}", flush=True)
        return 1
    verified = judged + sum(load.bytes_checked for load in loads)
    print(table)
    print(f"cold Python start (import zmq) in this run: {cold * 1000:.0f} ms; {memory}")
    print(f"chaos: pass, {len(plan)} faults, {verified >> 20} MiB verified, seed {seed}")
    return 0


def _plan(choose: random.Random, roles: list[tuple[Side, str]], each: int, count: int) -> list[tuple[Event, ...]]:
    """Every event `each` times, one at a time; without `each`, `count` drawn ones."""
    plan: list[tuple[Event, ...]] = [(event,) for _ in range(each) for event in every(roles)]
    return plan or [draw(choose, roles) for _ in range(count)]


def _strike(events: tuple[Event, ...], loads: list[Workload], table: Table, step: str) -> None:
    before = inside.pids()
    name = " and ".join(str(event) for event in events)
    _await(f"I/O in flight before: {name}", loads, lambda: all(load.in_flight() for load in loads))
    for load in loads:
        load.begin_gap()
    marks = [load.completed for load in loads]
    for event in events:
        event.strike()
    changed = victims(events)
    _await(f"successors after: {name}", loads, lambda: _replaced(before, changed))
    marks = [max(mark, load.completed) for mark, load in zip(marks, loads, strict=True)]
    flows = lambda: all(load.completed >= mark + FLOW for load, mark in zip(loads, marks, strict=True))  # noqa: E731
    _await(f"I/O to flow after: {name}", loads, flows)
    pause = max(load.pause() for load in loads)
    others = [key for key, pid in before.items() if key not in changed and inside.pids().get(key) != pid]
    if others:
        raise Violation(f"{name}: other processes changed too: {others}")
    table.add(name if len(events) == 1 else "two at once", pause)
    print(f"{step}: {name}: paused {pause * 1000:.0f} ms", flush=True)


def _replaced(before: dict[tuple[Side, str], int], changed: set[tuple[Side, str]]) -> bool:
    now = inside.pids()
    return all(now.get(key) not in (None, before.get(key)) for key in changed) and before.keys() <= now.keys()


def _await(what: str, loads: list[Workload], look: object) -> None:
    end = time.monotonic() + LIMIT_S
    while not look():  # type: ignore[operator]
        for load in loads:
            if load.violation is not None:
                raise load.violation
        if time.monotonic() > end:
            raise Violation(f"waited {LIMIT_S:g} s for {what}")
        time.sleep(0.01)


def _cold_start() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import zmq"], check=True)
    return time.monotonic() - started


def _memory() -> str:
    """PSS of each side: what it really costs, shared pages counted once."""
    told = []
    for side in Side:
        pss = 0
        for (its_side, _), pid in inside.pids().items():
            if its_side is side:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                pss += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        told.append(f"{side} {pss >> 10} MiB PSS")
    return ", ".join(told)


if __name__ == "__main__":
    sys.exit(main())
