"""What the gadget's session decides: which devices should exist after the host's set. No I/O, no clock.

A device, once there, stays until the operator takes it down: someone may have it mounted. A host that comes back with
another set parks what it leaves out; one that announces the same id with another geometry is another disk, and is
refused (the device stays parked, the reason is shown).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from common import limits
from common.errors import WireError
from common.wire import ConfigExports, ExportRecord
from common.wire_v1 import NO_IDENTITY, ConfigV1, ExportFlag, ExportV1
from gadget.session.state import Device, State

_V0_FLAGS = ExportFlag.DISCARD | ExportFlag.WRITE_ZEROES


@dataclass(frozen=True)
class Decision:
    """The new state, which of the host's exports are in force, and why others are not (by export id)."""

    state: State
    agreed: frozenset[int]
    refused: dict[int, str]


def exports_of(data: bytes, version: int) -> tuple[ExportV1, ...]:
    """The host's set in either wire's shape. Raises WireError.

    What v0 does not carry is unknown; its devices may ask for everything, and the block layer does without what the
    host then refuses.
    """
    if version == 1:
        return ConfigV1.decode(data).exports
    if version == 0:
        return tuple(ExportV1(record, _V0_FLAGS) for record in ConfigExports.decode(data).exports)
    raise WireError(f"a set of exports of wire version {version}")


def configure(
    state: State,
    exports: tuple[ExportV1, ...],
    taken_ublk_ids: frozenset[int],
    page_size: int,
    can_grow: bool = False,
) -> Decision:
    """Apply the host's set. `taken_ublk_ids`: numbers that any ublk device of this machine has now.

    `can_grow`: the driver can resize a disk in use, so the same disk may come back larger.
    """
    devices = {d.record.export_id: d for d in state.devices}
    refused: dict[int, str] = {}
    free = _free_ids(taken_ublk_ids | {d.ublk_id for d in state.devices})
    for export in exports:
        record = export.record
        known = devices.get(record.export_id)
        if ExportFlag.REMOVED in export.flags:
            if known is not None:
                devices[record.export_id] = replace(known, removed=True)
            refused[record.export_id] = "removed by the host"
        elif known is not None:
            why = _changed(known, export, can_grow)
            if why is not None:
                refused[record.export_id] = why
            else:
                devices[record.export_id] = _completed(known, export)
        elif record.block_size > page_size:
            refused[record.export_id] = f"block size {record.block_size} is larger than a page of {page_size}"
        elif len(devices) >= limits.MAX_EXPORTS:
            refused[record.export_id] = f"{len(devices)} devices exist already, parked ones included"
        else:
            devices[record.export_id] = _completed(_made_for(export, next(free)), export)
    agreed = frozenset(e.record.export_id for e in exports) - refused.keys()
    new = replace(state, devices=tuple(devices.values()), configured=tuple(sorted(agreed)))
    return Decision(new, agreed, refused)


def without(state: State, export_id: int) -> State:
    """`state` when the device of a removed export has no users any more."""
    return replace(state, devices=tuple(d for d in state.devices if d.record.export_id != export_id))


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


def _made_for(export: ExportV1, ublk_id: int) -> Device:
    flags = export.flags
    return Device(
        export_name(export.record),
        export.record,
        ublk_id,
        read_only=ExportFlag.READ_ONLY in flags,
        discard=ExportFlag.DISCARD in flags,
        write_zeroes=ExportFlag.WRITE_ZEROES in flags,
        physical_block=export.physical_block,
        optimal_io=export.optimal_io,
    )


def _completed(device: Device, export: ExportV1) -> Device:
    """`device` with what the host says of its disk's identity, where nothing was known of it."""
    identity = device.identity if export.identity == NO_IDENTITY else export.identity.hex()
    label = export.name or device.label
    return replace(device, record=export.record, identity=identity, label=label, removed=False)


def _has_grown(device: Device, export: ExportV1) -> bool:
    """The same disk for certain, which v0 cannot say, and nothing of it taken away."""
    known, new = device.record, export.record
    same = export.identity != NO_IDENTITY and export.identity.hex() == device.identity
    return same and new.block_size == known.block_size and new.size_bytes > known.size_bytes


def _changed(device: Device, export: ExportV1, can_grow: bool) -> str | None:
    """Why `export` is another disk than `device` stands for; None if it is the same one, grown or not."""
    known, new = device.record, export.record
    if _has_grown(device, export) and not can_grow:
        return (
            f"the disk has grown from {known.size_bytes} to {new.size_bytes} bytes, and this kernel cannot resize a "
            "device in use (Linux 6.16 can): it stays parked"
        )
    if known != new and not _has_grown(device, export):
        return (
            f"the host announces {new.size_bytes} bytes in blocks of {new.block_size}, the device has "
            f"{known.size_bytes} in blocks of {known.block_size}: another disk; it stays parked"
        )
    if device.identity and export.identity != NO_IDENTITY and export.identity.hex() != device.identity:
        return f"the host announces disk {export.identity.hex()}, the device is {device.identity}: it stays parked"
    if export.flags & ExportFlag.READ_ONLY and not device.read_only:
        return "the host announces it read-only, the device was made writable: it stays parked"
    return None
