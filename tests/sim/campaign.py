"""Many seeds, in several processes, until there are enough of them; each gives an `Outcome`, in no order.

A seed is a run of its own and shares nothing, so the processes need no more than the numbers. Used by `make sim`.
"""

import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context

from tests.sim.run import FAULTS, Run
from tests.sim.setting import Setting, drawn
from tests.sim.world import Violation


@dataclass(frozen=True)
class Plan:
    """What to run. `seeds` and `seconds` are bounds; `seconds` counts the time of all processes together."""

    first: int
    seeds: int | None = None
    seconds: float | None = None
    jobs: int = 1
    faults: int = FAULTS  # in each seed
    setting: Setting | None = None  # None: what each seed draws

    @property
    def endless(self) -> bool:
        return self.seeds is None and self.seconds is None


@dataclass(frozen=True)
class Outcome:
    seed: int
    steps: int
    counts: Counter[str]
    setting: str
    violation: str = ""  # empty: all held
    trace: str = ""


def outcomes(plan: Plan) -> Iterator[Outcome]:
    """Every seed of the plan once. Whoever has seen enough closes the iterator."""
    numbers = islice(count(plan.first), plan.seeds)
    end = None if plan.seconds is None else time.monotonic() + plan.seconds / plan.jobs
    with ProcessPoolExecutor(plan.jobs, get_context("fork")) as pool:
        running: set[Future[Outcome]] = set()
        try:
            while True:
                if end is None or time.monotonic() < end:
                    # One more than there are processes, so that none waits for us.
                    running |= {pool.submit(one, n, plan) for n in islice(numbers, plan.jobs + 1 - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def one(seed: int, plan: Plan) -> Outcome:
    setting = drawn(seed) if plan.setting is None else plan.setting
    run = Run(seed, faults=plan.faults, setting=setting)
    violation = ""
    try:
        run.execute()
    except Violation as found:
        violation = str(found)
    except Exception:  # of a model: a fault of the simulator is told with its seed as well
        violation = traceback.format_exc()
    trace = run.world.tail(300) if violation else ""
    return Outcome(seed, run.world.steps, run.world.counts, str(setting), violation, trace)
