"""`make soak HOURS=1`: faults natively until the time is over or Ctrl-C; `make soak HOURS=1 GUEST=1`: on a real kernel.

Ctrl-C ends it after the fault in progress, with the report and the same judgement; a second one breaks it off. The
exit status is 1 if anything failed, growth of a role's memory or descriptors included. (A guest ends by its time only:
Ctrl-C ends the guest itself, without a report at the end.)
"""

import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common.errors import ReplugError
from tests.chaos.__main__ import by_command, verifying
from tests.chaos.events import bring_up
from tests.chaos.machine import Machine
from tests.chaos.results import Results
from tests.chaos.workload import Violation
from tests.native.__main__ import images, on_models, strike_all
from tests.native.bench import bench
from tests.soak.curves import judged, table, verdict
from tests.soak.run import Soak
from tools.demo import inside


def main() -> int:
    seed = int(os.environ.get("SEED") or time.time())
    guest, hours = bool(os.environ.get("GUEST")), float(os.environ.get("HOURS") or 1)
    print(f"soak: SEED={seed}, {hours:g} hours; Ctrl-C ends it with the report", flush=True)
    run = Soak(seed, Results(), 90.0 if guest else 30.0, verifying if guest else on_models)
    run.duration_s = hours * 3600
    try:
        with tempfile.TemporaryDirectory(prefix="rpn-files-") as place:
            files = images(Path(place))
            (_in_guest if guest else _natively)(run, files, seed)
            run.judge_files(files)
        grown = verdict(run.curves)
        if grown:
            raise Violation("\n".join(grown))
    except (Violation, ReplugError, inside.DemoFailed, RuntimeError, OSError) as error:
        print(f"{run.results}\nsoak: FAIL after {run.step} faults: {error}")
        print(f"the same faults again: make chaos{'' if guest else '-native'} SEED={seed} N={run.step}", flush=True)
        return 1
    print(f"{run.results}\n{table(run.curves)}\n{run.line(0.0)}")
    growth = "no role grew" if judged(run.curves) else "too short to judge growth"
    print(f"soak: pass, {run.step} faults, {run.verified_bytes >> 20} MiB verified, {growth}, seed {seed}", flush=True)
    return 0


def _natively(run: Soak, files: list[Path], seed: int) -> None:
    # The model process is in our terminal's process group; ignored signals are inherited, so Ctrl-C is ours alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with bench(files, seed) as here:
        _stop_on_interrupt(run)
        strike_all(run, here)


def _in_guest(run: Soak, files: list[Path], seed: int) -> None:
    machine = Machine()
    run.said = machine.said
    with inside.both_sides(*files) as here:
        bring_up[:] = [partial(by_command, here)]
        run.strike_all([Path(here.image_device), Path(here.scratch_device)])
    if complaints := machine.complaints():
        raise Violation("\n".join(["the machine is not as before:", *complaints]))


def _stop_on_interrupt(run: Soak) -> None:
    asked: list[int] = []

    def interrupted(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, interrupted)
    run.stopping = lambda: bool(asked)


if __name__ == "__main__":
    sys.exit(main())
