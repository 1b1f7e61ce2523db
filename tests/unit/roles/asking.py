"""A role that plays session: it wants the roles that lie as JSON in the file named by its argument `wants`."""

import json
from pathlib import Path

from bus.role import Role


def start(role: Role) -> None:
    def want() -> None:
        path = Path(role.args["wants"])
        if path.exists():
            role.tell_watchdog({"note": "want", "roles": json.loads(path.read_text())})

    role.on_watchdog(want, lambda note: None)
    role.loop.every(0.05, want)
    role.ready()
