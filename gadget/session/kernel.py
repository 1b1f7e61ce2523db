"""The devices of an instance as the kernel has them: what is left when a state file is lost or torn. Reads only."""

import contextlib
import itertools
import os

from common.errors import WireError
from common.wire import ExportRecord
from gadget.session.core import export_name
from gadget.session.state import Device
from gadget.ublk.abi import Feature
from gadget.ublk.control import Control
from gadget.ublk.mark import export_of

_ANSWER_S = 5.0  # GET_PARAMS waits for the device's mutex, which a stuck owner may hold


def ublk_ids() -> frozenset[int]:
    """Numbers of all ublk devices of this machine, whoever made them (/sys/class/ublk-char/ublkcN)."""
    try:
        names = os.listdir("/sys/class/ublk-char")
    except FileNotFoundError:
        return frozenset()
    return frozenset(int(name.removeprefix("ublkc")) for name in names)


def can_resize() -> bool:
    """Can the driver change the size of a disk in use? False where there is no driver that could tell."""
    try:
        with Control(timeout_s=_ANSWER_S) as control:
            return bool(control.features() & Feature.UPDATE_SIZE)
    except OSError:
        return False


def free_id(taken: frozenset[int]) -> int:
    """The smallest number that no device has, nor one that was deleted and is still held open: sysfs has those no more.

    Raises OSError, TimeoutError if the driver does not answer.
    """
    with Control(timeout_s=_ANSWER_S) as control:
        for number in itertools.count():
            if number not in taken:
                with contextlib.suppress(FileNotFoundError):
                    if control.find(number) is None:
                        return number
    raise AssertionError("numbers never end")


def remove_unfinished(instance: str, known: frozenset[int]) -> list[str]:
    """Take away devices of ours that were never given a size, and so have no disk; but not the numbers in `known`.

    Their queue died right after ADD_DEV and what knew of them is lost, so nobody will finish them. Returns what was
    done, a line each. Raises as `devices_of`.
    """
    told = []
    for number in sorted(ublk_ids() - known):
        with Control(timeout_s=_ANSWER_S) as control, contextlib.suppress(FileNotFoundError):
            info = control.find(number)
            export_id = export_of(info.mark, instance) if info is not None else None
            if export_id is not None and not control.get_params(number).size_bytes:
                control.delete_async(number)
                told.append(
                    f"ublk device {number} of export {export_id:#x} never had a disk and nobody knows it: removed"
                )
    return told


def devices_of(instance: str) -> tuple[Device, ...]:
    """Every device that carries this instance's mark and has a size. One that was never given one has no disk either.

    Raises OSError, TimeoutError if a device does not answer.
    """
    numbers = sorted(ublk_ids())
    if not numbers:
        return ()
    found = []
    with Control(timeout_s=_ANSWER_S) as control:
        for number in numbers:
            try:
                info = control.find(number)
            except FileNotFoundError:
                continue  # deleted, and somebody still holds it open
            export_id = export_of(info.mark, instance) if info is not None else None
            if export_id is None:
                continue
            params = control.get_params(number)
            try:
                record = ExportRecord(export_id, params.block_size, params.size_bytes)
            except WireError:
                continue
            found.append(Device(export_name(record), record, number))
    return tuple(found)
