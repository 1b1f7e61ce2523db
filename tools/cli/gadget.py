"""`replug gadget up` and `replug gadget down`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus.runtime import Runtime, Side, check_name
from common.errors import Exit, Refused
from gadget.session.holders import holders_of
from tools.cli import checks
from tools.cli.claim import bringing_up, clear_stale
from tools.cli.devices import devices, remove_forgotten
from tools.cli.side import adopt, bring_up, refuse_second, say, take_down
from tools.supervise.launch import supervised
from tools.supervise.plan import gadget_plan

_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Wish:
    """What `gadget up` was asked for; None is what the roles choose themselves."""

    udc: str | None = None
    serial: str | None = None
    vendor_id: int | None = None
    product_id: int | None = None
    identity: str | None = None
    queue_depth: int | None = None
    max_io_bytes: int | None = None
    metrics: str | None = None
    ffs_dir: str | None = None

    def usb_args(self, controller: str) -> dict[str, Any]:
        """`controller`: of a gadget that we make."""
        if (place := self.place()) is not None:
            return {"ffs_dir": str(place)} | ({"identity": self.identity} if self.identity is not None else {})
        fields = {"vendor_id": self.vendor_id, "product_id": self.product_id, "identity": self.identity}
        serial = self.serial if self.serial is not None else machine_serial()
        return {"udc": controller, "serial": serial} | {k: v for k, v in fields.items() if v is not None}

    def place(self) -> Path | None:
        """Where the FunctionFS is that is not ours to make. Refused with what is not ours to say then."""
        if self.ffs_dir is None:
            return None
        makers = {"--udc": self.udc, "--serial": self.serial, "--vid": self.vendor_id, "--pid": self.product_id}
        if said := [option for option, value in makers.items() if value is not None]:
            what = "are" if len(said) > 1 else "is"
            raise Refused(f"--ffs-dir: {', '.join(said)} {what} said by who makes the gadget: leave it out here")
        return Path(self.ffs_dir).resolve()

    def session_args(self) -> dict[str, Any]:
        fields = {"queue_depth": self.queue_depth, "max_io_bytes": self.max_io_bytes, "metrics": self.metrics}
        return {k: v for k, v in fields.items() if v is not None}


def up(instance: str, wish: Wish, adopt_it: bool) -> int:
    """Bring the gadget side up, or take over what a dead one left: it is the same path."""
    checks.need_root()
    runtime = Runtime(Side.GADGET, check_name(instance, "instance name"))
    with bringing_up(runtime, "gadget up"):
        if adopt_it and adopt(runtime):
            say("gadget is up already")
            return Exit.DONE
        refuse_second(runtime, "gadget up")
        checks.load_modules()
        checks.need_ublk()
        place, controller = wish.place(), ""
        if place is not None:
            checks.need_ffs(place, runtime)
        else:
            controller = checks.need_udc(wish.udc, f"replug-{instance}")
        left = bool(devices(runtime))
        bring_up(gadget_plan(instance, wish.usb_args(controller), wish.session_args()), runtime)
    where = f"on {controller}" if place is None else f"in {place}, whose gadget can be bound now"
    say(f"gadget is up {where}" + (", its devices taken over" if left else ", waiting for a host"))
    return Exit.DONE


def down(instance: str, force: bool, if_running: bool) -> int:
    """Leave nothing behind. A holder of a device is named, and nothing changed, unless `force`.

    `if_running`: a side whose processes are all dead is left for the next `up`, which takes its devices over.
    """
    runtime = Runtime(Side.GADGET, check_name(instance, "instance name"))
    if if_running and not supervised(runtime):
        say("gadget does not run: what it left waits for the next 'replug gadget up'")
        return Exit.DONE
    clear_stale(runtime)
    there, ours = runtime.root.is_dir(), devices(runtime)
    if not there and not ours:
        raise Refused(f"gadget down: no gadget side runs here as instance {instance!r}: nothing to do", Exit.DOWN)
    if not force:
        for ublk_id in ours:
            holders = holders_of(ublk_id)
            if holders:
                cure = "let go of it, or use --force (its pending I/O then fails)"
                raise Refused(f"/dev/ublkb{ublk_id}: in use by {', '.join(holders)}: {cure}", Exit.BUSY)
    if there:
        take_down(runtime)
    forgotten = remove_forgotten(instance)
    say("gadget is down" + (f", and {', '.join(forgotten)} that it had forgotten" if forgotten else ""))
    return Exit.DONE


def machine_serial(machine_id: Path = _MACHINE_ID) -> str | None:
    """A serial number that stays this machine's: from its id, which itself is not to be shown (machine-id(5))."""
    try:
        text = machine_id.read_text().strip()
    except OSError:
        return None
    if not text or text == "uninitialized":
        return None
    return hashlib.sha256(f"replug gadget {text}".encode()).hexdigest()[:16]
