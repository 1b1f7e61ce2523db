"""A role whose loop does nothing else for as long as it is told to."""

import time

from bus.control import Arguments
from bus.role import Role


def start(role: Role) -> None:
    def work(arguments: Arguments) -> bool:
        (role.runtime.root / "busy").touch()
        time.sleep(float(arguments["for_s"]))
        return True

    role.method("work", work)
    role.ready()
