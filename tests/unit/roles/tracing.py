"""A role with one kill point in its start."""

from bus.role import Role
from common import trace


def start(role: Role) -> None:
    trace.point("tracing.starting")
    role.ready()
