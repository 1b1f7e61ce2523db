"""`make chaos-cells CELLS=3`: every event at every stage, shared out among guests, one for each processor.

Run in the background: each guest keeps what it measured in a file of its own (cells.1.jsonl), what it says in another,
and goes on where it was ended, also by a cell that failed: that one is written down, a new guest takes up the rest, and
the exit status is 1 at the end. `python -m tests.chaos.document` makes the table of all files.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.chaos.results import Results

WHERE = Path(".setup/results/chaos").absolute()
GUEST_S = 14000
FAILURES = 20  # of one part: then it is not one cell that is wrong


def main() -> int:
    parts = int(os.environ.get("JOBS") or os.cpu_count() or 1)
    WHERE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(parts) as pool:
        through = list(pool.map(partial(run, parts=parts), range(1, parts + 1)))
    failures = {cell: why for part in range(1, parts + 1) for cell, why in Results(_file(part)).failures.items()}
    for (event, stage), why in failures.items():
        print(f"FAILED: {event} at {stage}: {why}")
    for part, done in enumerate(through, 1):
        if not done:
            print(f"NOT THROUGH: part {part} of {parts}: its guest ended by something else than a cell; run it again")
    return 1 if failures or not all(through) else 0


def _file(part: int) -> Path:
    return WHERE / f"cells.{part}.jsonl"


def run(part: int, parts: int) -> bool:
    """One guest after the other, for as long as it is cells that fail. True if every cell of the part was struck."""
    for _ in range(FAILURES):
        before = len(Results(_file(part)).failures)
        if _guest(part, parts) == 0:
            return True
        if len(Results(_file(part)).failures) == before:
            return False  # what went wrong was not a cell, and would again
    return False


def _guest(part: int, parts: int) -> int:
    inside = {"CELLS": os.environ.get("CELLS") or "1", "PART": f"{part}/{parts}", "RESULTS": str(_file(part))}
    inside["SEED"] = os.environ.get("SEED") or "1"
    told = [f"{name}={value}" for name, value in inside.items()]
    command = [sys.executable, "-m", "tools.vm", "run", "--timeout", str(GUEST_S), "--share", str(WHERE), "--"]
    command += ["env", *told, sys.executable, "-m", "tests.chaos"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    with (WHERE / f"part-{part}.log").open("ab") as log:
        for line in child.stdout:
            log.write(line)
            log.flush()
            print(f"[{part}] {line.decode(errors='replace').rstrip()}", flush=True)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
