"""Which side a command means, and whether it is supervised. Light: `replug status` must answer at once.

No ZeroMQ, no supervision code: only the runtime directories are looked at.
"""

from bus.runtime import Runtime, Side, living
from common.errors import Exit, Refused

SUPERVISORS = ("watchdog", "spawner")


def meant(side: str | None, instance: str) -> Runtime | None:
    """The runtime directory of the side that runs, None if none does. Refused (2) if both do and none was named."""
    named = [Runtime(Side(side), instance)] if side else [Runtime(s, instance) for s in Side]
    there = [runtime for runtime in named if exists(runtime)]
    if len(there) > 1:
        raise Refused("both sides run here: it is not clear which one is meant: add --side gadget or --side host")
    return there[0] if there else None


def find(side: str | None, instance: str) -> Runtime:
    """The runtime directory meant. Refused (5) if nothing runs, (2) if both sides do and none was named."""
    runtime = meant(side, instance)
    if runtime is None:
        cure = "start a side with 'replug gadget up' or 'replug host serve'"
        what = f"the {side} side does not run" if side else "nothing runs"
        raise Refused(f"instance {instance!r}: {what} here: {cure}", Exit.DOWN)
    return runtime


def exists(runtime: Runtime) -> bool:
    return runtime.root.is_dir()


def supervised(runtime: Runtime) -> bool:
    """Does the watchdog or the spawner of this side live?"""
    return any(living(runtime, role) is not None for role in SUPERVISORS)
