"""The plan of a side: which roles it has from the start, with their entries and arguments.

A file in the runtime directory, written by the command line before it starts a spawner; read by spawner (what to
import) and watchdog (what to run). Roles that come and go while the side runs are in tools.supervise.memory.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bus.runtime import FIRST_FORMAT, FORMAT, Runtime, Side, check_name
from common import limits
from common.errors import MALFORMED, Refused

WATCHDOG_ENTRY = "tools.supervise.watchdog"
DYNAMIC_ENTRIES = {
    Side.GADGET: ("gadget.ublk.role",),
    Side.HOST: ("host.source.role",),
}  # imported before anybody wants them


@dataclass(frozen=True)
class RoleSpec:
    """What to run under a name: the module that has `start` (and maybe `retire`), and its arguments."""

    role: str
    entry: str
    args: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(fields: object) -> "RoleSpec":
        """Checked: it may come from a file or another process. Refused with one line."""
        match fields:
            case {"role": str(role), "entry": str(entry), **rest}:
                args = rest.get("args", {})
                if isinstance(args, dict) and entry and all(part.isidentifier() for part in entry.split(".")):
                    return RoleSpec(check_name(role, "role name"), entry, args)
        raise Refused(f"{fields!r}: not a role: needs role, entry and args")


@dataclass(frozen=True)
class SupervisionLimits:
    """The core's bounds, in seconds. A plan may set them (tests do); the defaults are those of common.limits."""

    ready_s: float = limits.READY_S
    silence_s: float = limits.SILENCE_S
    backoff_floor_s: float = limits.BACKOFF_FLOOR_S
    backoff_ceiling_s: float = limits.BACKOFF_CEILING_S
    drain_s: float = limits.DRAIN_S
    death_s: float = limits.DEATH_S
    retire_s: float = limits.RETIRE_S
    healthy_s: float = limits.HEALTHY_S


@dataclass(frozen=True)
class Plan:
    """`roles` are in start order; they are stopped by stop_stage. `awaited`: roles that its session wants at once."""

    side: Side
    instance: str
    roles: tuple[RoleSpec, ...]
    bounds: SupervisionLimits = SupervisionLimits()
    preload: tuple[str, ...] = ()
    awaited: tuple[str, ...] = ()

    def save(self, runtime: Runtime) -> None:
        write_json(
            plan_path(runtime),
            {
                "format": FORMAT,
                "side": self.side.value,
                "instance": self.instance,
                "roles": [asdict(r) for r in self.roles],
                "limits": asdict(self.bounds),
                "preload": list(self.preload),
            },
        )

    @staticmethod
    def load(runtime: Runtime) -> "Plan":
        """Refused if there is none or it makes no sense."""
        path = plan_path(runtime)
        try:
            fields = json.loads(path.read_text())
            if fields.get("format", FIRST_FORMAT) != FORMAT:
                raise ValueError(f"its format is {fields['format']!r}, ours {FORMAT}")
            roles = tuple(RoleSpec.of(r) for r in fields["roles"])
            bounds = SupervisionLimits(**{str(k): float(v) for k, v in fields.get("limits", {}).items()})
            side, preload = Side(fields["side"]), tuple(str(name) for name in fields.get("preload", ()))
            return Plan(side, str(fields["instance"]), roles, bounds, preload)
        except (OSError, *MALFORMED) as error:
            raise Refused(f"{path}: no usable plan: {error}: start the side again") from None


def plan_path(runtime: Runtime) -> Path:
    return runtime.root / "plan.json"


def gadget_plan(instance: str, usb_args: Mapping[str, Any], session_args: Mapping[str, Any]) -> Plan:
    """usb and session; the queues come from the session's `want`."""
    roles = (
        RoleSpec("usb", "gadget.usb.role", dict(usb_args)),
        RoleSpec("session", "gadget.session.role", dict(session_args)),
    )
    return Plan(Side.GADGET, instance, roles, preload=DYNAMIC_ENTRIES[Side.GADGET])


def host_plan(instance: str, sources: list[dict[str, Any]], session_args: Mapping[str, Any]) -> Plan:
    """usb and session; the session wants one source for each of `sources` (its arguments; `name` names the role)."""
    roles = (
        RoleSpec("usb", "host.usb.role", {}),
        RoleSpec("session", "host.session.role", dict(session_args)),
    )
    awaited = tuple(f"source.{s['name']}" for s in sources)
    return Plan(Side.HOST, instance, roles, preload=DYNAMIC_ENTRIES[Side.HOST], awaited=awaited)


def stop_stage(role: str) -> int:
    """When a role is stopped: session first (it asks for roles), usb last (the others' I/O runs over it)."""
    return {"session": 0, "usb": 2}.get(role, 1)


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Whole or not at all: the reader may be a successor of a writer killed half way."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(fields, indent=1))
    temporary.replace(path)
