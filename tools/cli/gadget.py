"""`replug gadget up` and `replug gadget down`."""

from bus.runtime import Runtime, Side, check_name
from common import limits
from common.errors import Exit, Refused
from tools.cli import checks
from tools.cli.claim import bringing_up, clear_stale
from tools.cli.devices import devices, remove_forgotten
from tools.cli.holders import holders_of
from tools.cli.side import bring_up, refuse_second, say, take_down
from tools.supervise.plan import gadget_plan


def up(instance: str, udc: str | None, serial: str | None, queue_depth: int | None) -> int:
    """Bring the gadget side up, or take over what a dead one left: it is the same path."""
    checks.need_root()
    runtime = Runtime(Side.GADGET, check_name(instance, "instance name"))
    if queue_depth is not None and queue_depth < limits.MIN_QUEUE_DEPTH:
        raise Refused(f"--queue-depth {queue_depth}: below {limits.MIN_QUEUE_DEPTH} a dead queue is noticed too late")
    if queue_depth is not None and queue_depth > limits.MAX_QUEUE_DEPTH:
        raise Refused(f"--queue-depth {queue_depth}: a host takes {limits.MAX_QUEUE_DEPTH} of an export at most")
    with bringing_up(runtime, "gadget up"):
        refuse_second(runtime, "gadget up")
        checks.load_modules()
        checks.need_ublk()
        controller = checks.need_udc(udc, f"replug-{instance}")
        left = bool(devices(runtime))
        usb_args = {"udc": controller} | ({"serial": serial} if serial else {})
        session_args = {"queue_depth": queue_depth} if queue_depth else {}
        bring_up(gadget_plan(instance, usb_args, session_args), runtime)
    say(f"gadget is up on {controller}" + (", its devices taken over" if left else ", waiting for a host"))
    return Exit.DONE


def down(instance: str, force: bool) -> int:
    """Leave nothing behind. A holder of a device is named, and nothing changed, unless `force`."""
    runtime = Runtime(Side.GADGET, check_name(instance, "instance name"))
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
