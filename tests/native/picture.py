"""`make top`: `replug top` in this terminal while one role after the other is killed, until q. `python -m
tests.native.picture FILE.svg`: the same for nine seconds as the picture of README, by `replug top --record`.

Over both sides as real processes under load, with the kernels modelled.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from bus.runtime import Runtime, Side
from tests.chaos.__main__ import BLOCKS
from tests.chaos.events import Kill
from tests.chaos.workload import Workload
from tests.native.__main__ import images
from tests.native.bench import bench
from tests.native.disk import ModelDisk
from tests.native.terminal import ROOT
from tools.cli.look import look

_STEP_S = 2.0  # between two kills


def main(words: list[str]) -> int:
    seen = ["--record", os.fspath(Path(words[0]).absolute()), "--for", "9s"] if words else []
    command = [sys.executable, "-m", "tools.cli", "top", "--side", "gadget", "--interval", "200ms", *seen]
    with tempfile.TemporaryDirectory(prefix="rpn-files-") as place, bench(images(Path(place))) as here:
        loads = [Workload(d, b, 1, 2, ModelDisk) for d, b in zip(here.devices, BLOCKS, strict=True)]
        queue = str(look(Runtime(Side.GADGET))["exports"][0]["role"])
        with subprocess.Popen(command, cwd=ROOT) as top:
            # The picture ends with nothing dead; who looks on may look for long.
            for role in (queue, "usb", "session") if seen else itertools.cycle((queue, "usb", "session", "watchdog")):
                if _ends_within(top, _STEP_S):
                    break
                with suppress(RuntimeError):  # it may have been killed by a key just now
                    Kill(Side.GADGET, role).strike()
            status = top.wait()
        for load in loads:
            load.stop(20.0)
    return status


def _ends_within(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
