"""A role that is ready when its job has run; the job writes its pid into the file named by the argument `mark`."""

import os
from pathlib import Path
from typing import Any

from bus.role import Role
from bus.runtime import Runtime
from common.errors import Gone


def start(role: Role) -> None:
    def told(note: dict[str, Any]) -> None:
        if note.get("note") == "job_done" and note.get("function") == "write_pid":
            if not note["ok"]:
                raise Gone(str(note["reason"]))
            role.ready()

    role.on_watchdog(lambda: role.tell_watchdog({"note": "job", "function": "write_pid"}), told)


def write_pid(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    Path(args["mark"]).write_text(str(os.getpid()))
