"""What this host offers a gadget, and what the operator changes of it meanwhile: `add`, `remove`, `eject`.

Both sets are written down before anything is done, for a successor. What was said to the gadget last is remembered, so
that a change is announced, and an operator learns when it is in force. Made by host/session/role.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from bus.role import Role
from common import limits
from common.errors import Refused, WireError
from common.wire import ConfigExports, Control
from common.wire_v1 import ConfigV1, ControlV1
from host.session.eject import Ejection, load_ejection, save_ejection
from host.session.export import Export, removed
from host.session.served import Args, Served, load_served, save_served

SOURCE_ENTRY = "host.source.role"


class Offer:
    """`changed`: there is something to announce. `replaced`: it is about another set of exports than before."""

    def __init__(
        self, role: Role, sources: list[Args], changed: Callable[[], None], replaced: Callable[[], None]
    ) -> None:
        self._role, self._changed, self._replaced = role, changed, replaced
        self.served = load_served(role.runtime, sources)
        self.exports = self.served.exports
        self.ejection = load_ejection(role.runtime)
        self._announced: Ejection | None = None  # what the last CONFIG said; None: a predecessor's, nobody knows
        self._announced_removed: tuple[Args, ...] = ()
        self._boot_id = boot_id()
        self.idle = False  # nothing is left that a v0 gadget could be given
        role.method("eject", self._call_eject)
        role.method("flushed", self._call_flushed)
        role.method("add", self._call_add)
        role.method("remove", self._call_remove)
        role.method("sources", lambda arguments: [dict(args) for args in self.served.sources])
        role.on_watchdog(self._want_sources, lambda note: None)

    # -- towards the gadget --------------------------------------------------------------------------------------
    def announcement(self, version: int, epoch: int) -> tuple[Control | ControlV1, bytes] | None:
        """The request on ep0 that says it, and its data; None if there is nothing that v0 could say."""
        self._announced, self._announced_removed = self.ejection, self.served.removed
        if version == 1:
            exports = tuple(self.ejection.marked(export.announced()) for export in self.exports)
            room = limits.MAX_EXPORTS - len(exports)
            exports += tuple(removed(export.announced()) for export in self.served.gone[:room])
            return ControlV1.CONFIG, ConfigV1(epoch, self._boot_id, exports).encode()
        left = tuple(e.record for e in self.exports if e.export_id not in self.ejection.ejected)
        self.idle = not left
        return (Control.CONFIG_EXPORTS, ConfigExports(left).encode()) if left else None

    def in_force(self) -> None:
        """The gadget's session has acted on what was announced last."""
        if self._announced_removed:
            self.served = self.served.told(self._announced_removed)
            save_served(self._role.runtime, self.served)

    @property
    def announced(self) -> bool:
        """Was this host's present ejection said in the last announcement?"""
        return self._announced == self.ejection

    def for_usb(self) -> list[list[Any]]:
        return [export.for_usb() for export in self.exports]

    # -- ejecting ------------------------------------------------------------------------------------------------
    def _call_eject(self, arguments: dict[str, Any]) -> list[str]:
        """Announce these exports (`names`; none: all) as ejected. Returns their names."""
        known = {export.name: export.export_id for export in self.exports}
        names = [str(name) for name in arguments.get("names") or known]
        if unknown := [name for name in names if name not in known]:
            raise Refused(f"{unknown[0]}: not served here: there are: {', '.join(known)}")
        self._eject(self.ejection.eject(known[name] for name in names))
        return names

    def _call_flushed(self, arguments: dict[str, Any]) -> list[str]:
        """The sources of these ejected exports have flushed after the gadget had the last answer: tell it."""
        names = [str(name) for name in arguments["names"]]
        self._eject(self.ejection.flush(export.export_id for export in self.exports if export.name in names))
        return names

    def _eject(self, ejection: Ejection) -> None:
        if ejection != self.ejection:
            self.ejection = ejection
            save_ejection(self._role.runtime, ejection)
        if not self.announced:
            self._changed()

    # -- adding and removing -------------------------------------------------------------------------------------
    def _want_sources(self) -> None:
        roles = [{"role": f"source.{a['name']}", "entry": SOURCE_ENTRY, "args": dict(a)} for a in self.served.sources]
        self._role.tell_watchdog({"note": "want", "roles": roles})

    def _call_add(self, arguments: dict[str, Any]) -> None:
        """Serve this too: `source`, the arguments of its role."""
        try:
            served = self.served.add(arguments["source"])
        except (KeyError, TypeError, ValueError, WireError) as error:
            raise Refused(f"not a source's arguments: {type(error).__name__}: {error}") from None
        self._serve(served, self.ejection.forget(served.exports[-1].export_id))

    def _call_remove(self, arguments: dict[str, Any]) -> None:
        """Serve `name` no more. It must have been ejected and flushed: nobody waits for an answer, nothing is lost."""
        name = str(arguments["name"])
        served = self.served.remove(name)
        export_id = next(export.export_id for export in self.exports if export.name == name)
        if export_id not in self.ejection.flushed:
            raise Refused(f"{name}: not ejected and flushed yet: eject it first")
        self._serve(served, self.ejection.forget(export_id))

    def _serve(self, served: Served, ejection: Ejection) -> None:
        if served == self.served:
            return
        save_served(self._role.runtime, served)
        if ejection != self.ejection:
            save_ejection(self._role.runtime, ejection)
        self.served, self.exports, self.ejection = served, served.exports, ejection
        self.idle = False
        self._want_sources()
        self._announced = None
        self._replaced()

    # -- status --------------------------------------------------------------------------------------------------
    def status(self, since: str, absent: str) -> list[dict[str, Any]]:
        """Its exports for people and programs. `absent`: why no gadget has them now, `since` when; empty: one has."""
        return [
            {**self._export_status(export, since, absent), "source": str(args.get("path", ""))}
            for export, args in zip(self.exports, self.served.sources, strict=True)
        ]

    def _export_status(self, export: Export, since: str, absent: str) -> dict[str, Any]:
        ejected = export.export_id in self.ejection.ejected
        reason = absent
        if ejected:
            flushed = export.export_id in self.ejection.flushed
            reason = "ejected: " + (
                "flushed: it is safe to unplug or power off" if flushed else "not flushed yet: wait"
            )
        return {
            "name": export.name,
            "role": f"source.{export.name}",
            "id": f"{export.export_id:#010x}",
            "device": "",
            "size_bytes": export.size_bytes,
            "block_size": export.block_size,
            "read_only": export.read_only,
            "state": "parked" if absent or ejected else "live",
            **({"since": since} if absent else {}),
            "reason": reason,
        }


def boot_id() -> bytes:
    """This machine's boot id, 16 bytes (random(4)): another one means that what was not flushed may be lost."""
    return UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
