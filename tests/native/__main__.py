"""`make chaos-native SEED=... N=...`: N faults from one seed upon both sides as real processes, the kernels modelled.

The scenarios, the workload and the table are those of tests/chaos; EACH, CELLS, RESULTS and BUDGETS mean the same.
After each fault I/O flows, every process that was not struck has kept its pid, and the models have seen nothing that a
kernel would not take (a request completed twice, say). Pauses are judged by the figures that are promised for native
runs. A failure prints seed, step, the ends of all logs and the model's last events, and SEED with N of that step strike
the same again.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import ReplugError
from tests.chaos.__main__ import BLOCKS, Planned, Run, verifying
from tests.chaos.budgets import native_limits
from tests.chaos.events import Key
from tests.chaos.results import Results
from tests.chaos.workload import BLOCK, Violation, Workload
from tests.native.bench import Bench, bench
from tests.native.disk import ModelDisk

LIMIT_S = 30.0  # for I/O to flow again: far above every budget


def main() -> int:
    signal.signal(signal.SIGTERM, _ended)  # of timeout(1), say: both sides are processes of their own and must be ended
    seed = int(os.environ.get("SEED") or time.time())
    v0 = bool(os.environ.get("V0"))
    print(f"chaos-native: SEED={seed}{' V0=1' if v0 else ''}", flush=True)
    run = Run(seed, Results(Path(os.environ["RESULTS"]) if os.environ.get("RESULTS") else None), LIMIT_S, on_models)
    run.limits = native_limits
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="rpn-files-") as place:
            files = images(Path(place))
            with bench(files, seed, v0) as here:
                strike_all(run, here)
            run.judge_files(files)
    except (Violation, ReplugError, RuntimeError, OSError) as error:
        print(f"{run.results}\n{run.report}\nchaos-native: FAIL at step {run.step}: {error}")
        print(f"again: make chaos-native SEED={seed} N={run.step}", flush=True)
        return 1
    print(f"{run.results}\n{run.report}")
    took = time.monotonic() - began
    verified = f"{run.verified_bytes >> 20} MiB verified"
    print(f"chaos-native: pass, {run.counted} in {took:.0f} s, {verified}, seed {seed}")
    return run.verdict()


def _ended(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def on_models(devices: list[Path], seed: int) -> list[Workload]:
    """The load of a run, on disks of the model."""
    return verifying(devices, seed, ModelDisk)


def images(place: Path) -> list[Path]:
    """The host's files: empty, and of the sizes that a run knows its disks by."""
    files = [place / "a.img", place / "b.img"]
    for file, blocks in zip(files, BLOCKS, strict=True):
        file.write_bytes(bytes(blocks * BLOCK))
    return files


def strike_all(run: Run, here: Bench, chosen: Callable[[list[Key]], Planned] | None = None) -> None:
    """All of the run's faults; what is wrong is told with what everybody did last. The disks' users have ended then."""
    try:
        run.strike_all(here.devices, chosen)
        if complaints := here.complaints():
            raise Violation("\n".join(["the models saw what no kernel would take:", *complaints]))
    except (Violation, ReplugError, RuntimeError, OSError) as error:
        raise Violation(f"{error}\n{here.last_words()}") from error


if __name__ == "__main__":
    sys.exit(main())
