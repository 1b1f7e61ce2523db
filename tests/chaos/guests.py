"""`make chaos-cells CELLS=3`: every event at every stage, shared out among guests, one for each processor.

Run in the background: each guest keeps what it measured in a file of its own (cells.1.jsonl), what it says in another,
and goes on where it was ended, also by a cell that failed: that one is written down, a new guest takes up the rest, and
the exit status is 1 at the end. `python -m tests.chaos.document` makes the table of all files.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.chaos.results import Results

WHERE = Path(".setup/results/chaos").absolute()
GUEST_S = 14000
FAILURES = 20  # of one part: then it is not one cell that is wrong


def main() -> int:
    parts = int(os.environ.get("JOBS") or os.cpu_count() or 1)
    WHERE.mkdir(parents=True, exist_ok=True)
    threads = [threading.Thread(target=_run, args=(part, parts)) for part in range(1, parts + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = {cell: why for part in range(1, parts + 1) for cell, why in Results(_file(part)).failures.items()}
    for (event, stage), why in failures.items():
        print(f"FAILED: {event} at {stage}: {why}")
    return 1 if failures else 0


def _file(part: int) -> Path:
    return WHERE / f"cells.{part}.jsonl"


def _run(part: int, parts: int) -> None:
    for _ in range(FAILURES):
        before = len(Results(_file(part)).failures)
        if _guest(part, parts) == 0 or len(Results(_file(part)).failures) == before:
            return  # all struck; or what went wrong was not a cell, and would again


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
