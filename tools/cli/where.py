"""Which side a command means, and whether it is supervised. Light: `replug status` must answer at once.

No ZeroMQ, no supervision code: only the runtime directories are looked at.
"""

import os
import pwd
from contextlib import suppress
from pathlib import Path

from bus.runtime import Runtime, Side, living
from common.errors import Exit, Refused

SUPERVISORS = ("watchdog", "spawner")
BASES = (Path("/run/replug"), Path("/run/replug-host"))  # of root, and of a service that is another user's


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
        if whose := elsewhere(side, instance):
            raise Refused(f"instance {instance!r}: {whose}")
        cure = "start a side with 'replug gadget up' or 'replug host serve'"
        what = f"the {side} side does not run" if side else "nothing runs"
        raise Refused(f"instance {instance!r}: {what} here: {cure}", Exit.DOWN)
    return runtime


def elsewhere(side: str | None, instance: str) -> str:
    """What to say if nothing of ours runs, but a side of root's or another user's does; else nothing.

    Its directory is closed to us. That it is there can be seen, and whose it is.
    """
    for base in BASES if os.geteuid() != 0 and "REPLUG_RUNTIME" not in os.environ else ():
        for one in [Side(side)] if side else list(Side):
            with suppress(OSError):  # not there
                owner = (base / f"{one}-{instance}").stat().st_uid
                if owner == 0:
                    return f"the {one} side runs here as root: say it again with sudo"
                return f"the {one} side runs here as {_user(owner)}: say it as that user, with REPLUG_RUNTIME={base}"
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def exists(runtime: Runtime) -> bool:
    return runtime.root.is_dir()


def supervised(runtime: Runtime) -> bool:
    """Does the watchdog or the spawner of this side live?"""
    return any(living(runtime, role) is not None for role in SUPERVISORS)
