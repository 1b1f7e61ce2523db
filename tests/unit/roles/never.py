"""A role that can never work as configured."""

from bus.role import Role
from common.errors import Refused


def start(role: Role) -> None:
    raise Refused("no such controller: plug one in")
