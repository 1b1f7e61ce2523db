"""The gadget's state file: what a whole-side death must not forget. Written atomically, on tmpfs beside the sockets.

Deliberately not on a disk: ublk devices do not outlive the kernel, so neither may their description. A file that
cannot be understood is an error with a name, never a guess.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import MALFORMED, WireError
from common.wire import ConfigExports, ExportRecord

VERSION = 1
MAX_BYTES = 64 * 1024  # 32 exports take about 6 KiB


@dataclass(frozen=True)
class Device:
    """An export and the ublk device it has: chosen before the device is made, so that a death in between finds it.

    `identity` of the disk in hex, `label` as the host calls it: empty where no host has said (v0 cannot). What it can
    and its sizes (bytes, 0: not known) are those of the host that had it made: a device's limits do not change.
    """

    name: str
    record: ExportRecord
    ublk_id: int
    read_only: bool = False
    identity: str = ""
    label: str = ""
    discard: bool = True
    write_zeroes: bool = True
    physical_block: int = 0
    optimal_io: int = 0
    removed: bool = False  # by the host's operator: it goes when nobody uses it


@dataclass(frozen=True)
class State:
    """session_id: u64, drawn at a start without a state file. `configured`: the export ids of the host's last set.

    `instance`: whose it is; empty in a file of the first releases, which did not say.
    """

    session_id: int
    devices: tuple[Device, ...] = ()
    configured: tuple[int, ...] = ()
    instance: str = ""

    def encode(self) -> bytes:
        devices = [{**asdict(d.record), **_fields_of(d)} for d in self.devices]
        fields = {
            "version": VERSION,
            "instance": self.instance,
            "session_id": f"{self.session_id:#018x}",
            "devices": devices,
            "configured": list(self.configured),
        }
        return json.dumps(fields, indent=1).encode() + b"\n"

    @staticmethod
    def decode(data: bytes) -> "State":
        """Raises WireError with the reason if it is torn, empty, foreign or of another version."""
        try:
            fields = json.loads(data)
            if fields["version"] != VERSION:
                raise WireError(f"state file is of version {fields['version']}, not {VERSION}")
            devices = tuple(_device(item) for item in fields["devices"])
            ConfigExports(tuple(d.record for d in devices))  # unique ids, within the limits
            if len({d.ublk_id for d in devices}) != len(devices) or len({d.name for d in devices}) != len(devices):
                raise WireError("state file names a device twice")
            session_id = int(fields["session_id"], 16)
            if not 0 < session_id < 1 << 64:
                raise WireError("state file has no session id")
            configured = tuple(int(n) for n in fields["configured"])
            return State(session_id, devices, configured, str(fields.get("instance", "")))
        except MALFORMED as error:
            raise WireError(f"state file is not ours or torn: {type(error).__name__}: {error}") from None


def _fields_of(device: Device) -> dict[str, Any]:
    return {name: value for name, value in asdict(device).items() if name != "record"}


def _device(fields: dict[str, Any]) -> Device:
    record = ExportRecord(int(fields["export_id"]), int(fields["block_size"]), int(fields["size_bytes"]))
    ublk_id = int(fields["ublk_id"])
    if not 0 <= ublk_id < 1 << 20:
        raise WireError(f"state file: ublk id {ublk_id}")
    # The last ones were not written by the first releases; a device that they made was writable and could all.
    read_only, identity, label = fields.get("read_only", False), fields.get("identity", ""), fields.get("label", "")
    if type(read_only) is not bool or type(identity) is not str or type(label) is not str:
        raise WireError(f"state file: device {ublk_id} is not described soundly")
    discard, write_zeroes = fields.get("discard", True) is True, fields.get("write_zeroes", True) is True
    removed = fields.get("removed", False) is True
    sizes = (int(fields.get("physical_block", 0)), int(fields.get("optimal_io", 0)))
    said = (read_only, identity, label, discard, write_zeroes, *sizes, removed)
    return Device(str(fields["name"]), record, ublk_id, *said)


def load(path: Path, instance: str) -> State | None:
    """None if there is none. Raises WireError if there is one that cannot be understood, or is another instance's.

    Its devices would be that instance's, and its session id the one that another gadget answers with.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise WireError(f"state file is larger than {MAX_BYTES} bytes")
    state = State.decode(data)
    if state.instance not in ("", instance):
        raise WireError(f"state file is of instance {state.instance}, not {instance}")
    return replace(state, instance=instance)


def save(path: Path, state: State) -> None:
    """Replace the file in one step; whoever reads sees the old or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(state.encode())
    temporary.replace(path)
