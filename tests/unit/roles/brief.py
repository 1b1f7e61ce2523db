"""A role that is ready, and dies soon after."""

from bus.role import Role
from common.errors import RoleExit


def start(role: Role) -> None:
    role.ready()
    role.loop.after(0.1, lambda: role.loop.stop(RoleExit.RESTART))
