"""The gadget's session process: keeps the state file, tells the watchdog which queues to run and usb what is agreed.

Its death pauses no I/O: usb and the queues go on with what they were told last; a successor reads the state file and
says the same again.
"""

import mmap
import os
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bus.books import distrust_missing, ledger_of
from bus.envelope import Body, Kind
from bus.role import Role
from common import limits, trace
from common.errors import MALFORMED, WireError
from common.ledger import NO_BOOT, Ledger
from common.refusals import Refusals
from common.wire_v1 import ExportFlag, ExportV1
from gadget.session import parking
from gadget.session.core import adopt, configure, exports_of, without
from gadget.session.holders import holders_of
from gadget.session.kernel import can_resize, devices_of, free_id, remove_unfinished, ublk_ids
from gadget.session.links import write_names
from gadget.session.operator import Operator
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
        self._can_grow = can_resize()
        self._answered = 0  # the CONFIG_EXPORTS, by usb's count, that `agreed` belongs to
        self._agreed: frozenset[int] = frozenset()
        self._refused: dict[int, str] = {}
        self._refusals = Refusals(role.log, role.loop.now)
        self._unserved: dict[int, datetime] = {}  # exports that are not in force, since when
        self._rebooted: dict[int, str] = {}  # those of the refused that the operator decides about
        self._set: tuple[tuple[ExportV1, ...], bytes] | None = None  # the host's last set, and its boot id
        self._ledgers: dict[int, Ledger] = {}
        self._operator = Operator(role, self._exports, self._failed, self._resumed)
        self._holders: dict[int, list[str]] = {}  # of devices that the host has removed
        self._leaving: set[int] = set()  # of those, the ones that nobody uses: their queues are not wanted
        self._looking = False
        self._link: dict[str, Any] = {"state": "absent"}
        self._since = self._born = datetime.now(UTC)
        self._queues: dict[str, dict[str, Any]] = {}
        self._scanned: set[str] = set()  # queues whose disk's partitions were asked for since it is live
        role.on_watchdog(self._want_queues, self._from_watchdog)
        role.status = self._status
        self._usb = role.connect("usb", "session", lambda: {}, self._usb_arrived, self._from_usb)
        role.ready()
        self._clear_removed()

    def _recover(self) -> State:
        try:
            state = load(self._path, self._role.runtime.instance)
        except WireError as error:
            # The kernel tells which devices it had (below); a new session id tells the host to begin anew.
            aside = self._path.with_suffix(".unreadable")
            os.replace(self._path, aside)
            self._role.log.error(f"{error}: kept as {aside.name}; starting a new session")
            state = None
        fresh = state is None
        known = state or State(secrets.randbits(63) + 1, instance=self._role.runtime.instance)
        known, notices = adopt(known, devices_of(self._role.runtime.instance))
        notices += remove_unfinished(self._role.runtime.instance, frozenset(d.ublk_id for d in known.devices))
        # A device gets its ledger before it is in the state file (`_decide`), so one without has lost it.
        unknown = distrust_missing(self._role.runtime, (device.record.export_id for device in known.devices))
        notices += [f"export {export_id:#x}: what was flushed of it is not known any more" for export_id in unknown]
        for notice in notices:
            self._role.log.warning(notice)
        save(self._path, known)
        write_names(self._role.runtime.root, known.devices)
        how = "is new" if fresh else "goes on"
        self._role.log.info(f"session {known.session_id:#018x} {how}, with {len(known.devices)} devices")
        return known

    # -- towards the watchdog ------------------------------------------------------------------------------------
    def _want_queues(self) -> None:
        ended = {*parking.failed(self._operator.wishes), *self._leaving}
        roles = [
            {"role": queue_role(d.name), "entry": QUEUE_ENTRY, "args": self._queue_args(d)}
            for d in self._state.devices
            if d.record.export_id not in ended
        ]
        self._role.tell_watchdog({"note": "want", "roles": roles})

    def _queue_args(self, device: Device) -> dict[str, Any]:
        return {
            "export_id": device.record.export_id,
            "block_size": device.record.block_size,
            "size_bytes": device.record.size_bytes,
            "ublk_id": device.ublk_id,
            "read_only": device.read_only,
            "discard": device.discard,
            "write_zeroes": device.write_zeroes,
            "physical_block": device.physical_block,
            "optimal_io": device.optimal_io,
            "depth": int(self._role.args.get("queue_depth", limits.QUEUE_DEPTH)),
            "max_io_bytes": int(self._role.args.get("max_io_bytes", limits.MAX_IO_BYTES)),
        }

    def _from_watchdog(self, note: dict[str, Any]) -> None:
        if note.get("note") == "role" and isinstance(note.get("role"), str):
            self._queues[note["role"]] = note
            if note.get("state") != "running":
                self._scanned.discard(note["role"])
            self._scan()

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
            if body.get("state") != "online":
                self._scanned.clear()
            self._scan()
        elif body.get("note") == "config_exports":
            try:
                data, version, count = bytes(memoryview(body["data"])), int(body["version"]), int(body["count"])
            except MALFORMED as error:
                raise WireError(f"config_exports of usb: {type(error).__name__}: {error}") from None
            self._set, self._answered = (exports_of(data, version), parking.boot_of(data, version)), count
            trace.point("session.configuring")
            self._decide()

    def _decide(self) -> None:
        """The host's last set, and what the operator has said, become what is in force."""
        exports, boot_id = self._set or ((), NO_BOOT)
        decision = configure(self._state, exports, ublk_ids(), mmap.PAGESIZE, self._can_grow)
        wishes = self._operator.wishes
        self._rebooted = parking.rebooted(decision.agreed, boot_id, self._ledger, wishes)
        decision = parking.withhold(decision, {**parking.ejected(exports), **self._rebooted, **parking.failed(wishes)})
        self._tell_refused(exports, decision.refused)
        if decision.state != self._state:
            self._state = decision.state
            save(self._path, self._state)  # before any device is made
            write_names(self._role.runtime.root, self._state.devices)
        if (decision.agreed, decision.refused) != (self._agreed, self._refused):
            self._role.log.info(f"host configured {len(exports)} exports, {len(decision.agreed)} in force")
        self._agreed, self._refused = decision.agreed, decision.refused
        now = datetime.now(UTC)
        devices = {device.record.export_id for device in self._state.devices}
        self._unserved = {each: self._unserved.get(each, now) for each in devices - self._agreed}
        trace.point("session.saved")
        self._leaving &= {d.record.export_id for d in self._state.devices if d.removed}
        self._want_queues()
        self._tell_usb()
        self._clear_removed()
        self._scan()

    def _tell_refused(self, exports: tuple[ExportV1, ...], refused: dict[int, str]) -> None:
        """Counted, and logged as far as a host that says sets without end leaves room for; status has all of them."""
        taken_away = {e.record.export_id for e in exports if e.flags & (ExportFlag.EJECTED | ExportFlag.REMOVED)}
        for export_id, why in refused.items():
            if export_id not in taken_away:
                self._refusals.count("export", f"export {export_id:#x}: {why}")
            elif self._refused.get(export_id) != why:
                self._role.log.info(f"export {export_id:#x}: {why}")

    def _scan(self) -> None:
        """Partitions of each disk, now that it can be read: asked for once whenever it has become live."""
        for device in self._state.devices:
            role = queue_role(device.name)
            running = self._queues.get(role, {}).get("state") == "running"
            if running and role not in self._scanned and self._export_status(device)["state"] == "live":
                self._scanned.add(role)
                self._role.tell_watchdog({"note": "job", "function": "scan", "role": role})

    def _clear_removed(self) -> None:
        """Have the devices of removed exports taken away, each when nobody uses it: someone may have it mounted."""
        removed = {d.record.export_id: d.ublk_id for d in self._state.devices if d.removed}
        self._leaving &= removed.keys()
        there = ublk_ids() if removed else frozenset()
        for export_id, ublk_id in removed.items():
            self._holders[export_id] = holders_of(ublk_id)
            if ublk_id not in there:  # only now: a successor of ours would take it for a device that nobody remembers
                self._state = without(self._state, export_id)
                save(self._path, self._state)
                write_names(self._role.runtime.root, self._state.devices)
            elif not self._holders[export_id] and export_id not in self._leaving:
                self._role.log.info(f"export {export_id:#x}: removed by the host: /dev/ublkb{ublk_id} goes")
                self._leaving.add(export_id)
        if removed:
            self._want_queues()
        if any(d.removed for d in self._state.devices) and not self._looking:
            self._looking = True
            self._role.loop.after(limits.HOLDERS_LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = False
        self._clear_removed()

    # -- the operator --------------------------------------------------------------------------------------------
    def _ledger(self, export_id: int) -> Ledger:
        if export_id not in self._ledgers:
            self._ledgers[export_id] = ledger_of(self._role.runtime, export_id)
        return self._ledgers[export_id]

    def _exports(self) -> list[tuple[int, dict[str, Any]]]:
        return [(device.record.export_id, self._export_status(device)) for device in self._state.devices]

    def _failed(self, export_id: int) -> None:
        """Its queue is not wanted any more: the watchdog ends it and takes the device away, and its I/O fails."""
        self._decide_anew()

    def _resumed(self, export_id: int, anew: bool) -> None:
        """What the host has is accepted; a device that was ended gets a successor, under a number that nobody holds."""
        if self._set is not None:
            self._operator.accept(export_id, self._set[1])
        if anew:
            free = free_id(frozenset(d.ublk_id for d in self._state.devices))
            moved = (replace(d, ublk_id=free) if d.record.export_id == export_id else d for d in self._state.devices)
            self._state = replace(self._state, devices=tuple(moved))
            save(self._path, self._state)
        self._decide_anew()

    def _decide_anew(self) -> None:
        if self._set is not None:
            self._decide()
        else:  # the host has said nothing to this session yet: when it does, the wish is known
            self._want_queues()

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
            **self._refusals.status(),
        }

    def _export_status(self, device: Device) -> dict[str, Any]:
        queue = self._queues.get(queue_role(device.name), {})
        in_force = device.record.export_id in self._agreed or device.record.export_id in self._state.configured
        export_id = device.record.export_id
        wish = self._operator.wishes.get(export_id, parking.NOTHING)
        state, reason, since = "live", "", self._unserved.get(export_id, self._born)
        if wish.failed:
            state, reason = "failed", f"{wish.failed}: `replug export resume` gives it a new device"
        elif queue.get("state") not in (None, "running"):
            state = {"failed": "failed", "stuck": "parked"}.get(queue["state"], "recovering")
            reason = f"{queue_role(device.name)} is {queue['state']}: {queue.get('reason') or 'no reason given'}"
        elif device.removed:
            holders = ", ".join(self._holders.get(export_id, [])) or "somebody"
            state, reason = "parked", f"removed by the host, in use by {holders}: it goes when they let go of it"
        elif export_id in self._refused:
            state, reason = "parked", self._refused[export_id]
        elif self._link.get("state") != "online":
            state, since = "parked", self._since
            reason = f"link {self._link.get('state')} since {self._since.isoformat(timespec='seconds')}"
        elif not in_force:
            state, reason = "parked", "the host does not serve it at present"
        told = {} if state in ("live", "recovering") else {"since": since.isoformat(timespec="milliseconds")}
        return {
            **told,
            "name": device.label or device.name,
            "role": queue_role(device.name),
            "id": f"{export_id:#010x}",
            "device": "" if wish.failed else f"/dev/ublkb{device.ublk_id}",
            "size_bytes": device.record.size_bytes,
            "block_size": device.record.block_size,
            "read_only": device.read_only,
            "state": state,
            "reason": reason,
            "unflushed_bytes": self._ledger(export_id).unflushed,
            "needs_operator": bool(wish.failed) or (state == "parked" and export_id in self._rebooted),
            "limit_s": wish.limit_s,
            "ended": queue.get("state") in (None, "gone"),
        }


def start(role: Role) -> None:
    Session(role)
