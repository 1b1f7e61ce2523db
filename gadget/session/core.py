"""What the gadget's session decides: which devices should exist after the host's set. No I/O, no clock.

A device, once there, stays until the operator takes it down: someone may have it mounted. A host that comes back with
another set parks what it leaves out; one that announces the same id with another geometry is another disk, and is
refused (the device stays parked, the reason is shown).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common import limits
from common.wire import ConfigExports, ExportRecord
from gadget.session.state import Device, State


@dataclass(frozen=True)
class Decision:
    """The new state, which of the host's exports are in force, and why others are not (by export id)."""

    state: State
    agreed: frozenset[int]
    refused: dict[int, str]


def configure(state: State, config: ConfigExports, taken_ublk_ids: frozenset[int], page_size: int) -> Decision:
    """Apply a CONFIG_EXPORTS. `taken_ublk_ids`: numbers that any ublk device of this machine has now."""
    devices = {d.record.export_id: d for d in state.devices}
    refused: dict[int, str] = {}
    free = _free_ids(taken_ublk_ids | {d.ublk_id for d in state.devices})
    for record in config.exports:
        known = devices.get(record.export_id)
        if known is not None:
            if known.record != record:
                refused[record.export_id] = _changed(known.record, record)
        elif record.block_size > page_size:
            refused[record.export_id] = f"block size {record.block_size} is larger than a page of {page_size}"
        elif len(devices) >= limits.MAX_EXPORTS:
            refused[record.export_id] = f"{len(devices)} devices exist already, parked ones included"
        else:
            devices[record.export_id] = Device(export_name(record), record, next(free))
    agreed = frozenset(r.export_id for r in config.exports) - refused.keys()
    new = replace(state, devices=tuple(devices.values()), configured=tuple(sorted(agreed)))
    return Decision(new, agreed, refused)


def adopt(state: State, found: tuple[Device, ...]) -> tuple[State, list[str]]:
    """`state` with every device of ours that the kernel has; and what the operator should know of it, a line each.

    The kernel is right about which number an export has: two devices for one export must never be, and none may be
    left behind unmentioned.
    """
    devices = {d.record.export_id: d for d in state.devices}
    numbers = {d.ublk_id for d in found}
    notices = []
    for device in found:
        export_id = device.record.export_id
        known = devices.get(export_id)
        if known is not None and known.ublk_id == device.ublk_id:
            continue
        if known is not None and known.ublk_id in numbers:
            notices.append(f"/dev/ublkb{device.ublk_id} is a second device of export {export_id:#x}: remove it by hand")
            continue
        devices[export_id] = device
        notices.append(f"/dev/ublkb{device.ublk_id} of export {export_id:#x} is not in the state file: taken over")
    return replace(state, devices=tuple(devices.values())), notices


def export_name(record: ExportRecord) -> str:
    """v0 carries no names: the id in hex, as the host shows it too."""
    return f"{record.export_id:08x}"


def _free_ids(taken: frozenset[int]) -> Iterator[int]:
    """The smallest device numbers not taken, in order."""
    return (number for number in itertools.count() if number not in taken)


def _changed(known: ExportRecord, new: ExportRecord) -> str:
    return (
        f"the host announces {new.size_bytes} bytes in blocks of {new.block_size}, the device has "
        f"{known.size_bytes} in blocks of {known.block_size}: another disk; it stays parked"
    )
