"""The gadget's session process: keeps the state file, tells the watchdog which queues to run and usb what is agreed.

Its death pauses no I/O: usb and the queues go on with what they were told last; a successor reads the state file and
says the same again.
"""

import mmap
import os
import secrets
from datetime import UTC, datetime
from typing import Any

from bus.envelope import Body, Kind
from bus.role import Role
from common import limits, trace
from common.errors import WireError
from common.wire_v1 import ExportV1
from gadget.session.core import adopt, configure, exports_of
from gadget.session.kernel import devices_of, ublk_ids
from gadget.session.state import Device, State, load, save

QUEUE_ENTRY = "gadget.ublk.role"


def queue_role(name: str) -> str:
    return f"queue.{name}"


class Session:
    """Handlers of the session role. All decisions are gadget.session.core's."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._path = role.runtime.state_path()
        self._state = self._recover()
        self._answered = 0  # the CONFIG_EXPORTS, by usb's count, that `agreed` belongs to
        self._agreed: frozenset[int] = frozenset()
        self._refused: dict[int, str] = {}
        self._link: dict[str, Any] = {"state": "absent"}
        self._since = datetime.now(UTC)
        self._queues: dict[str, dict[str, Any]] = {}
        role.on_watchdog(self._want_queues, self._from_watchdog)
        role.status = self._status
        self._usb = role.connect("usb", "session", lambda: {}, self._usb_arrived, self._from_usb)
        role.ready()

    def _recover(self) -> State:
        try:
            state = load(self._path)
        except WireError as error:
            # The kernel tells which devices it had (below); a new session id tells the host to begin anew.
            aside = self._path.with_suffix(".unreadable")
            os.replace(self._path, aside)
            self._role.log.error(f"{error}: kept as {aside.name}; starting a new session")
            state = None
        fresh = state is None
        known = state or State(secrets.randbits(63) + 1)
        known, notices = adopt(known, devices_of(self._role.runtime.instance))
        for notice in notices:
            self._role.log.warning(notice)
        save(self._path, known)
        how = "is new" if fresh else "goes on"
        self._role.log.info(f"session {known.session_id:#018x} {how}, with {len(known.devices)} devices")
        return known

    # -- towards the watchdog ------------------------------------------------------------------------------------
    def _want_queues(self) -> None:
        roles = [
            {"role": queue_role(d.name), "entry": QUEUE_ENTRY, "args": self._queue_args(d)} for d in self._state.devices
        ]
        self._role.tell_watchdog({"note": "want", "roles": roles})

    def _queue_args(self, device: Device) -> dict[str, Any]:
        return {
            "export_id": device.record.export_id,
            "block_size": device.record.block_size,
            "size_bytes": device.record.size_bytes,
            "ublk_id": device.ublk_id,
            "read_only": device.read_only,
            "depth": int(self._role.args.get("queue_depth", limits.QUEUE_DEPTH)),
            "max_io_bytes": int(self._role.args.get("max_io_bytes", limits.MAX_IO_BYTES)),
        }

    def _from_watchdog(self, note: dict[str, Any]) -> None:
        if note.get("note") == "role" and isinstance(note.get("role"), str):
            self._queues[note["role"]] = note

    # -- towards usb ---------------------------------------------------------------------------------------------
    def _usb_arrived(self, generation: int) -> None:
        self._answered = 0  # a new usb means a new enumeration: its host will say CONFIG_EXPORTS again
        self._agreed = frozenset()
        self._tell_usb()

    def _tell_usb(self) -> None:
        note = {
            "note": "session",
            "session_id": self._state.session_id,
            "configured": self._answered,
            "agreed": sorted(self._agreed),
        }
        self._usb.send(Kind.NOTE, note)

    def _from_usb(self, kind: Kind, body: Body) -> None:
        if kind is not Kind.NOTE or not isinstance(body, dict):
            raise WireError(f"{kind} from usb is not a note")
        if body.get("note") == "link":
            if body.get("state") != self._link.get("state"):
                self._since = datetime.now(UTC)
            self._link = body
        elif body.get("note") == "config_exports":
            self._configure(exports_of(body["data"], int(body["version"])), int(body["count"]))

    def _configure(self, exports: tuple[ExportV1, ...], count: int) -> None:
        trace.point("session.configuring")
        decision = configure(self._state, exports, ublk_ids(), mmap.PAGESIZE)
        for export_id, why in decision.refused.items():
            self._role.log.warning(f"export {export_id:#x}: {why}")
        if decision.state != self._state:
            self._state = decision.state
            save(self._path, self._state)  # before any device is made
        self._agreed, self._refused, self._answered = decision.agreed, decision.refused, count
        self._role.log.info(f"host configured {len(exports)} exports, {len(decision.agreed)} in force")
        trace.point("session.saved")
        self._want_queues()
        self._tell_usb()

    # -- status --------------------------------------------------------------------------------------------------
    def _status(self) -> dict[str, Any]:
        link = {k: v for k, v in self._link.items() if k != "note"}
        return {
            "session_id": f"{self._state.session_id:#018x}",
            "link": {
                **link,
                "since": self._since.isoformat(timespec="milliseconds"),
                "peer": self._link.get("peer", "v0"),
            },
            "exports": [self._export_status(d) for d in self._state.devices],
        }

    def _export_status(self, device: Device) -> dict[str, Any]:
        queue = self._queues.get(queue_role(device.name), {})
        in_force = device.record.export_id in self._agreed or device.record.export_id in self._state.configured
        state, reason = "live", ""
        if queue.get("state") not in (None, "running"):
            state = "failed" if queue["state"] == "failed" else "recovering"
            reason = f"{queue_role(device.name)} is {queue['state']}: {queue.get('reason') or 'no reason given'}"
        elif device.record.export_id in self._refused:
            state, reason = "parked", self._refused[device.record.export_id]
        elif self._link.get("state") != "online":
            state = "parked"
            reason = f"link {self._link.get('state')} since {self._since.isoformat(timespec='seconds')}"
        elif not in_force:
            state, reason = "parked", "the host does not serve it at present"
        return {
            "name": device.label or device.name,
            "role": queue_role(device.name),
            "id": f"{device.record.export_id:#010x}",
            "device": f"/dev/ublkb{device.ublk_id}",
            "size_bytes": device.record.size_bytes,
            "block_size": device.record.block_size,
            "read_only": device.read_only,
            "state": state,
            "reason": reason,
        }


def start(role: Role) -> None:
    Session(role)
