"""What a watchdog remembers for its successor: roles the session wants, roles on their way out, counts.

One file in the runtime directory, replaced atomically whenever something in it changes; read at a watchdog's start,
and by the command line to know the devices of a side whose supervision has died.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bus.runtime import FIRST_FORMAT, FORMAT, Runtime
from common.errors import MALFORMED, Refused
from tools.supervise.plan import RoleSpec, write_json


@dataclass(frozen=True)
class History:
    """What status tells about a role's past."""

    restarts: int = 0
    last_exit: str = ""
    pause_ms: int | None = None


@dataclass(frozen=True)
class Memory:
    """`wanted`: the dynamic set. `leaving`: not wanted any more, not yet retired. `down`: the side is going."""

    wanted: tuple[RoleSpec, ...] = ()
    leaving: tuple[RoleSpec, ...] = ()
    down: bool = False
    history: Mapping[str, History] = field(default_factory=dict)

    def save(self, runtime: Runtime) -> None:
        write_json(memory_path(runtime), {"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(runtime: Runtime) -> "Memory":
        """An absent or senseless file is an empty memory: the session will say again what it wants. So is one of
        another format, which only a side is left with that was ended as a whole."""
        try:
            fields = json.loads(memory_path(runtime).read_text())
            if fields.get("format", FIRST_FORMAT) != FORMAT:
                return Memory()
            return Memory(
                tuple(RoleSpec.of(r) for r in fields["wanted"]),
                tuple(RoleSpec.of(r) for r in fields["leaving"]),
                fields["down"] is True,
                {str(role): _history(entry) for role, entry in fields["history"].items()},
            )
        except (OSError, Refused, *MALFORMED):
            return Memory()


def _history(entry: Mapping[str, Any]) -> History:
    pause = entry["pause_ms"]
    return History(int(entry["restarts"]), str(entry["last_exit"]), None if pause is None else int(pause))


def memory_path(runtime: Runtime) -> Path:
    return runtime.root / "wanted.json"


def failures_path(runtime: Runtime) -> Path:
    """What `down` could not take away, by role. Written only then; the directory stays for another try."""
    return runtime.root / "failures.json"
