"""Which gadgets are meant: `SERIAL`, `serial:SERIAL`, `id:VID:PID` in hex, or `port:1-2.3` as sysfs names it.

Pure: texts in, a test on a gadget's facts out. Used by host.session.finder and by the command line.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_ID = re.compile(r"(?:0x)?([0-9a-fA-F]{1,4}):(?:0x)?([0-9a-fA-F]{1,4})")
_PORT = re.compile(r"[1-9][0-9]*-[1-9][0-9]*(?:\.[1-9][0-9]*)*")


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be told of a device before it is opened. `place` is its name in /sys/bus/usb/devices."""

    serial: str
    vendor_id: int
    product_id: int
    place: str


def chooser(text: str | None) -> Callable[[Facts], bool]:
    """A test for what `text` means; None means every gadget. ValueError, with the forms, if it means nothing."""
    if text is None:
        return lambda facts: True
    kind, colon, value = text.partition(":")
    if not colon or kind not in ("serial", "id", "port"):
        kind, value = "serial", text
    if kind == "id":
        match = _ID.fullmatch(value)
        if match is None:
            raise ValueError(f"{text!r} names no VID:PID: write it as id:1d6b:0104")
        wanted = int(match[1], 16), int(match[2], 16)
        return lambda facts: (facts.vendor_id, facts.product_id) == wanted
    if kind == "port":
        if not _PORT.fullmatch(value):
            raise ValueError(f"{text!r} names no port: write it as in /sys/bus/usb/devices: port:1-2.3")
        return lambda facts: facts.place == value
    if not value:
        raise ValueError(f"{text!r}: an empty serial number: leave the choice out to take any gadget")
    return lambda facts: facts.serial == value
