"""What one value of an option may be, as text: the types of the grammar, on the command line and in a file alike.

Each takes a text and gives the value, or raises ArgumentTypeError with `what is wrong: why or what to do`. Only what
can be said of the value alone: whether a file is there, or a controller free, is looked at when it is used.
"""

import argparse
import re
from collections.abc import Callable
from typing import TypeVar

from common import limits
from common.errors import Refused
from common.units import parse_size, parse_time

_Value = TypeVar("_Value")
_SERIAL = re.compile(r"[!-~]([ -~]{0,124}[!-~])?")  # what fits a USB string descriptor and is told from its blanks
_USB_ID = re.compile(r"0[xX][0-9a-fA-F]{1,4}")  # without 0x, 1234 would be which?


def _as(parse: Callable[[str], _Value], text: str) -> _Value:
    """`parse`, whose own errors are told as a wrong value's."""
    try:
        return parse(text)
    except (ValueError, Refused) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def size(text: str) -> int:
    return _as(parse_size, text)


def time(text: str) -> float:
    return _as(parse_time, text)


def number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of a bus or device, as lsusb shows them")
    return int(text)


def usb_id(text: str) -> int:
    if not _USB_ID.fullmatch(text) or int(text, 16) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a USB id: write it in hex with 0x, as 0x1d6b")
    return int(text, 16)


def serial(text: str) -> str:
    if not _SERIAL.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a USB serial number: use 1 to 126 printable characters")
    return text


def queue_depth(text: str) -> int:
    try:
        depth = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if depth < limits.MIN_QUEUE_DEPTH:
        raise argparse.ArgumentTypeError(f"{depth}: below {limits.MIN_QUEUE_DEPTH} a dead queue is noticed too late")
    if depth > limits.MAX_QUEUE_DEPTH:
        raise argparse.ArgumentTypeError(f"{depth}: a host takes {limits.MAX_QUEUE_DEPTH} of an export at most")
    return depth


def max_io(text: str) -> int:
    size_bytes = size(text)
    if not limits.PAGE <= size_bytes <= limits.MAX_IO_BYTES or size_bytes % limits.PAGE:
        raise argparse.ArgumentTypeError(f"{text}: not a multiple of {limits.PAGE} up to {limits.MAX_IO_BYTES}")
    return size_bytes


def block_size(text: str) -> int:
    size_bytes = size(text)
    # A u32 power of two that the gadget's ublk can take: at most the page size, 4096 on all but a few machines.
    if size_bytes & (size_bytes - 1) or not limits.MIN_BLOCK_SIZE <= size_bytes <= limits.PAGE:
        why = f"not a power of two in {limits.MIN_BLOCK_SIZE}..{limits.PAGE}: ublk takes no other"
        raise argparse.ArgumentTypeError(f"{text}: {why}")
    return size_bytes


def source(text: str) -> str:
    from tools.cli.sources import understood  # with the sources' own modules: only for who serves something

    _as(understood, text)
    return text


def gadget(text: str) -> str:
    from host.session.choice import chooser

    _as(chooser, text)
    return text


def loopback(text: str) -> str:
    from bus.metrics import checked_address

    _as(checked_address, text)
    return text
