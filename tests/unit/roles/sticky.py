"""A role whose retirement fails."""

from typing import Any

from bus.role import Role
from bus.runtime import Runtime


def start(role: Role) -> None:
    role.ready()


def retire(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    raise OSError(16, "Device or resource busy")
