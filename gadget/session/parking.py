"""What holds an export back although its host is there, and the operator's ways out. No I/O, no clock.

A host that rebooted over acknowledged, unflushed writes may have lost them: the export stays parked until the operator
accepts what the host has, or fails the device. What was decided outlives the session in a file of its own (`encode`).
Called by gadget/session/role.py.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from common.errors import MALFORMED, WireError
from common.ledger import NO_BOOT, Ledger
from common.units import show_size
from common.wire_v1 import ConfigV1, ExportFlag, ExportV1
from gadget.session.core import Decision

VERSION = 1


@dataclass(frozen=True)
class Wish:
    """What the operator has said of one export."""

    accepted: str = ""  # boot id of the host, in hex, whose data are taken as they are
    limit_s: float = 0.0  # parked so long, it fails; 0: it waits
    parked_at_s: float = 0.0  # where there is a limit: since when it is parked, CLOCK_MONOTONIC; 0: it is not
    failed: str = ""  # why its device was ended


Wishes = Mapping[int, Wish]
NOTHING = Wish()


def boot_of(data: bytes, version: int) -> bytes:
    """The host's boot id in its set of exports; v0 does not say it."""
    return ConfigV1.decode(data).boot_id if version == 1 else NO_BOOT


def rebooted(exports: Iterable[int], boot_id: bytes, ledger: Callable[[int], Ledger], wishes: Wishes) -> dict[int, str]:
    """Exports whose unflushed writes a host of this boot may not have, and why they are held back."""
    return {
        export_id: f"{_rebooted_over(ledger(export_id))}: `replug export resume` takes what the host has, "
        "`replug export fail` ends the device"
        for export_id in exports
        if ledger(export_id).lost_to(boot_id) and wishes.get(export_id, NOTHING).accepted != boot_id.hex()
    }


def _rebooted_over(ledger: Ledger) -> str:
    if ledger.unknown:
        return "the runtime directory was lost, and with it whether the host has rebooted over writes not flushed"
    return f"the host has rebooted over {show_size(ledger.unflushed)} acknowledged and not flushed: they may be lost"


def ejected(exports: Iterable[ExportV1]) -> dict[int, str]:
    """Exports that the host's operator takes away, and why they are held back."""
    return {
        export.record.export_id: "ejected at the host"
        + (", everything is flushed there" if ExportFlag.FLUSHED in export.flags else ", which flushes it now")
        for export in exports
        if ExportFlag.EJECTED in export.flags
    }


def failed(wishes: Wishes) -> dict[int, str]:
    """Exports whose device was ended, and why."""
    return {export_id: wish.failed for export_id, wish in wishes.items() if wish.failed}


def withhold(decision: Decision, reasons: Mapping[int, str]) -> Decision:
    """The same decision without these exports: they keep their devices, and nothing of them goes on the wire."""
    agreed = decision.agreed - reasons.keys()
    state = replace(decision.state, configured=tuple(sorted(agreed)))
    held = {export_id: why for export_id, why in reasons.items() if export_id in decision.agreed}
    return Decision(state, agreed, {**decision.refused, **held})


def tick(wish: Wish, parked: bool, now: float) -> Wish:
    """Time has passed. The wish is failed in the result if it has been parked for its limit."""
    if wish.failed or not wish.limit_s:
        return wish
    if not parked:
        return replace(wish, parked_at_s=0.0)
    if not wish.parked_at_s:
        return replace(wish, parked_at_s=now)
    if now - wish.parked_at_s < wish.limit_s:
        return wish
    return replace(wish, failed=f"parked for longer than its limit of {wish.limit_s:g} s", parked_at_s=0.0)


def encode(wishes: Wishes) -> bytes:
    exports = {f"{export_id:#x}": asdict(wish) for export_id, wish in wishes.items() if wish != NOTHING}
    return json.dumps({"version": VERSION, "exports": exports}, indent=1).encode() + b"\n"


def decode(data: bytes) -> dict[int, Wish]:
    """Raises WireError with the reason if it is torn, foreign or of another version."""
    try:
        fields = json.loads(data)
        if fields["version"] != VERSION:
            raise WireError(f"parking file is of version {fields['version']}, not {VERSION}")
        return {int(export_id, 16): _wish(**wish) for export_id, wish in fields["exports"].items()}
    except MALFORMED as error:
        raise WireError(f"parking file is not ours or torn: {type(error).__name__}: {error}") from None


def _wish(accepted: str, limit_s: float, parked_at_s: float, failed: str) -> Wish:
    return Wish(str(accepted), float(limit_s), float(parked_at_s), str(failed))
