"""A role that dies before it is ready, until the file named by its argument `until` exists."""

from pathlib import Path

from bus.role import Role
from common.errors import Gone


def start(role: Role) -> None:
    if not Path(role.args["until"]).exists():
        raise Gone("not yet")
    role.ready()
