"""A role that is ready and stays; retired, it leaves a mark named by its argument `mark`."""

from pathlib import Path
from typing import Any

from bus.role import Role
from bus.runtime import Runtime


def start(role: Role) -> None:
    role.ready()


def retire(runtime: Runtime, role: str, args: dict[str, Any]) -> None:
    if "mark" in args:
        with Path(args["mark"]).open("a") as file:
            file.write(f"{role}\n")
