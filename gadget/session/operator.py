"""The operator's word on parked exports, as the session hears it: control calls, their file, the limits' clock.

What it means is gadget.session.parking's. The file lies beside the state file and is replaced in one step before
anything is done, so a session that is killed in between leaves it to its successor. Called by gadget/session/role.py.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bus.control import Arguments
from bus.role import Role
from common import limits
from common.errors import Exit, Refused, WireError
from gadget.session import parking
from gadget.session.parking import NOTHING, Wish

_LOOK_S: Final = 0.25  # how late a limit may be
Status = dict[str, Any]


def wishes_path(role: Role) -> Path:
    return role.runtime.root / "parking.json"


def load_wishes(role: Role) -> dict[int, Wish]:
    """What was said so far. A file that cannot be understood is kept aside, and what it resumed is parked again."""
    path = wishes_path(role)
    try:
        return parking.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except WireError as error:
        aside = path.with_suffix(".unreadable")
        os.replace(path, aside)
        role.log.error(f"{error}: kept as {aside.name}")
        return {}


def save_wishes(role: Role, wishes: dict[int, Wish]) -> None:
    path = wishes_path(role)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(parking.encode(wishes))
    temporary.replace(path)


class Operator:
    """`look`: each export's id and status. `failed`, and `resumed` with "was its device ended?", act on a wish."""

    def __init__(
        self,
        role: Role,
        look: Callable[[], list[tuple[int, Status]]],
        failed: Callable[[int], None],
        resumed: Callable[[int, bool], None],
    ) -> None:
        self._role, self._look, self._failed, self._resumed = role, look, failed, resumed
        self.wishes = load_wishes(role)
        for name, handler in (("fail", self._fail), ("limit", self._limit), ("resume", self._resume)):
            role.method(f"export_{name}", handler)
        self._ticking = False
        self._tick_on()

    def accept(self, export_id: int, boot_id: bytes) -> None:
        """What a host of this boot has is taken as it is."""
        self._wish(export_id, replace(self._of(export_id), accepted=boot_id.hex()))

    def _of(self, export_id: int) -> Wish:
        return self.wishes.get(export_id, NOTHING)

    def _wish(self, export_id: int, wish: Wish) -> None:
        if wish != self._of(export_id):
            self.wishes = {**self.wishes, export_id: wish}
            save_wishes(self._role, self.wishes)

    def _tick_on(self) -> None:
        """The clock runs only where somebody has set a limit."""
        if not self._ticking and any(wish.limit_s for wish in self.wishes.values()):
            self._ticking = True
            self._role.loop.every(_LOOK_S, self._tick)

    def _tick(self) -> None:
        for export_id, status in self._look():
            before = self._of(export_id)
            wish = parking.tick(before, status["state"] == "parked", self._role.loop.now())
            self._wish(export_id, wish)
            if wish.failed and not before.failed:
                self._role.log.error(f"export {export_id:#x}: {wish.failed}: its device ends")
                self._failed(export_id)

    # -- control calls -------------------------------------------------------------------------------------------
    def _named(self, arguments: Arguments) -> tuple[int, Status]:
        """The export meant by name, id, role or device."""
        name = str(arguments["export"])
        there = self._look()
        for export_id, status in there:
            if name in (status["name"], status["id"], status["role"], status["device"]):
                return export_id, status
        known = ", ".join(status["name"] for _, status in there) or "none"
        raise Refused(f"{name}: no such export here: there are: {known}")

    def _fail(self, arguments: Arguments) -> Status:
        export_id, status = self._named(arguments)
        if status["state"] not in ("parked", "recovering"):
            cure = "only what waits can be failed" if status["state"] == "live" else "nothing to do"
            raise Refused(f"{status['name']}: {status['state']}: {cure}", Exit.BAD_INPUT)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        why = f"by the operator at {now}, when it was {status['state']}"
        self._wish(export_id, replace(self._of(export_id), failed=why, parked_at_s=0.0))
        self._role.log.warning(f"export {export_id:#x}: failed {why}: its device ends")
        self._failed(export_id)
        return status

    def _limit(self, arguments: Arguments) -> Status:
        export_id, status = self._named(arguments)
        limit_s = float(arguments["limit_s"])
        if limit_s and not limits.MIN_PARK_S <= limit_s <= limits.MAX_PARK_S:
            raise Refused(f"limit {limit_s:g} s: not within {limits.MIN_PARK_S:g} s and {limits.MAX_PARK_S:g} s")
        self._wish(export_id, replace(self._of(export_id), limit_s=limit_s, parked_at_s=0.0))
        self._tick_on()
        return status

    def _resume(self, arguments: Arguments) -> Status:
        export_id, status = self._named(arguments)
        wish = self._of(export_id)
        if wish.failed and not status["ended"]:
            raise Refused(f"{status['name']}: its device is still ending: try again", Exit.BUSY)
        if not wish.failed and not status["needs_operator"]:
            why = status["reason"] or "nothing holds it back"
            raise Refused(f"{status['name']}: {status['state']}: {why}: there is nothing to decide", Exit.BAD_INPUT)
        self._wish(export_id, replace(wish, failed="", parked_at_s=0.0))
        self._resumed(export_id, bool(wish.failed))
        return status
