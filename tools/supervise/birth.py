"""In a child of the spawner, right after the fork: become a role's process, or do its retirement or another job of it.

Called by tools.supervise.spawner only. Nothing here returns: a child must never run on as a second spawner.
"""

import importlib
import os
import time
from typing import NoReturn

from bus.metrics import with_metrics
from bus.role import SESSION, Birth, live
from bus.runtime import Runtime, take_name, write_reason
from common import limits
from common.errors import Gone, RoleExit
from tools.supervise import process
from tools.supervise.jobs import reason_name
from tools.supervise.plan import RoleSpec

START, RETIRE, PREPARE = "start", "retire", "prepare"


def be_role(
    runtime: Runtime, spec: RoleSpec, function: str, generation: int, kept: dict[str, int], urgent: bool
) -> NoReturn:
    """Be `spec`'s process (START), or call another function of its entry: `retire`, or a job."""
    status = int(RoleExit.RESTART)
    try:
        output = runtime.root / "log" / f"{spec.role}.err"
        comm = spec.role if function == START else function
        process.begin_child(comm, set(kept.values()), output)
        module = importlib.import_module(spec.entry)  # imported long ago, unless the plan did not know of it
        if function == START:
            birth = Birth(runtime, spec.role, generation, spec.args, kept, urgent)
            if prepare := getattr(module, PREPARE, None):
                birth = prepare(birth)
            live(birth, with_metrics(module.start) if spec.role == SESSION else module.start)
        if function == RETIRE:
            take_name_in_turn(runtime, spec.role, generation)  # as long as we live: no role of this name meanwhile
        work = getattr(module, function, None)
        if work is not None:
            work(runtime, spec.role, spec.args)
        status = 0 if work is not None or function == RETIRE else int(RoleExit.NEVER)
    except BaseException as error:  # this process's last catcher: it must not run on as a second spawner
        name = spec.role if function in (START, RETIRE) else reason_name(spec.role, function)
        write_reason(runtime, name, f"{function}: {type(error).__name__}: {error}")
    finally:
        os._exit(status)


def take_name_in_turn(runtime: Runtime, role: str, generation: int) -> int:
    """For a retirement, when one that a dead watchdog had ordered is at it already: it is done once more, after it.

    Gone if that takes too long; the watchdog will have ended us by then.
    """
    deadline = time.monotonic() + limits.RETIRE_S
    while True:
        try:
            return take_name(runtime, role, generation)
        except Gone:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
