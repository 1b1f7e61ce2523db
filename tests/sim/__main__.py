"""`python -m tests.sim SEED N`: runs seeds; without arguments without end. A failure prints how to run it again."""

import os
import sys
import time
from collections import Counter
from itertools import count

from tests.sim.run import Run
from tests.sim.world import Violation


def main() -> int:
    first = int(os.environ.get("SEED") or time.time_ns() % 1_000_000)
    number = int(os.environ["N"]) if os.environ.get("N") else None
    seeds = count(first) if number is None else range(first, first + number)
    began = said = time.monotonic()
    done, faults, failed = 0, 0, 0
    counts: Counter[str] = Counter()
    for seed in seeds:
        run = Run(seed)
        try:
            run.execute()
        except Violation as violation:
            failed += 1
            print(f"\nseed {seed} (step {run.world.steps}): {violation}")
            if number is None or number == 1:
                print(run.world.tail(int(os.environ.get("TAIL") or 60)))
            print(f"again: make sim SEED={seed} N=1", flush=True)
            if number is None:
                return 1
        done += 1
        counts += run.world.counts
        faults += sum(n for name, n in run.world.counts.items() if name.startswith("fault "))
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"{done} seeds, {done / (said - began):.1f} a second, {faults} faults, {failed} failed", flush=True)
    print(f"{done} seeds, {faults} faults, {failed} failed, {time.monotonic() - began:.1f} s")
    if os.environ.get("COUNTS"):
        for name, n in sorted(counts.items()):
            print(f"  {name}: {n}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
