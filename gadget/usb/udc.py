"""USB device controllers as sysfs shows them (/sys/class/udc, Documentation/ABI/stable/sysfs-class-udc). Reads only."""

from pathlib import Path

from common.errors import Exit, Refused

CLASS = Path("/sys/class/udc")


def controllers() -> list[str]:
    """Names of all controllers of this machine, sorted."""
    return sorted(entry.name for entry in CLASS.iterdir()) if CLASS.is_dir() else []


def choose(wanted: str | None) -> str:
    """`wanted`, or the only controller there is. Refused if there is none, or several and none was named."""
    present = controllers()
    if wanted is not None:
        if wanted not in present:
            raise Refused(f"{wanted}: no such USB device controller: choose from: {', '.join(present) or 'none here'}")
        return wanted
    if not present:
        cure = "load its driver (or 'modprobe dummy_hcd')"
        raise Refused(f"no USB device controller: /sys/class/udc is empty: {cure}", Exit.LACKING)
    if len(present) > 1:
        raise Refused(f"several USB device controllers: {', '.join(present)}: name one with --udc")
    return present[0]


def state(udc: str) -> str:
    """`configured`, `not attached`, `suspended`, ... as the kernel writes it; empty if the controller is gone."""
    return _read(udc, "state")


def speed(udc: str) -> str:
    """`high-speed`, `super-speed`, ... of the present connection; `UNKNOWN` without one."""
    return _read(udc, "current_speed")


def function(udc: str) -> str:
    """What the gadget driver that is bound to it calls itself; empty if none is."""
    return _read(udc, "function")


def is_dummy(udc: str) -> bool:
    """Is it a controller without hardware (dummy_hcd)? Tests touch no other."""
    return (CLASS / udc).resolve().parent.parent.name.startswith("dummy_udc")


def _read(udc: str, attribute: str) -> str:
    try:
        return (CLASS / udc / attribute).read_text().strip()
    except OSError:
        return ""
