"""A role that is ready, and dies at once."""

from bus.role import Role
from common.errors import RoleExit


def start(role: Role) -> None:
    role.ready()
    role.loop.after(0.01, lambda: role.loop.stop(RoleExit.RESTART))
