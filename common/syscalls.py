"""System calls that Python's `os` does not offer, by number: io_uring, Linux AIO, capabilities, memory locking.

One table for the architectures the gadget side runs on, and one function. Arguments are integers; a pointer
is passed as its address (`ctypes.addressof`), which the caller keeps alive until the kernel is done with it.
Called by the ublk binding (io_uring), the FunctionFS endpoints (AIO) and whatever locks its memory. The GIL
is released during the call.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Final, Literal

Name = Literal[
    "capget",
    "capset",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_setup",
    "io_submit",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "mlock",
    "mlockall",
    "munlock",
    "munlockall",
]


class Arch(Enum):
    """Architectures, by the name that uname(2) gives."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


NUMBERS: Final[dict[Arch, dict[Name, int]]] = {
    Arch.X86_64: {  # arch/x86/entry/syscalls/syscall_64.tbl
        "capget": 125,
        "capset": 126,
        "mlock": 149,
        "munlock": 150,
        "mlockall": 151,
        "munlockall": 152,
        "io_setup": 206,
        "io_destroy": 207,
        "io_getevents": 208,
        "io_submit": 209,
        "io_cancel": 210,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
    },
    Arch.AARCH64: {  # include/uapi/asm-generic/unistd.h
        "io_setup": 0,
        "io_destroy": 1,
        "io_submit": 2,
        "io_cancel": 3,
        "io_getevents": 4,
        "capget": 90,
        "capset": 91,
        "mlock": 228,
        "munlock": 229,
        "mlockall": 230,
        "munlockall": 231,
        "io_uring_setup": 425,
        "io_uring_enter": 426,
        "io_uring_register": 427,
    },
}

MAX_ARGUMENTS: Final = 6  # of any Linux system call

_libc = ctypes.CDLL(None, use_errno=True)
_call = _libc.syscall
_call.restype = ctypes.c_long
# Plain ctypes would pass a Python int as C int and cut an address in half; with argtypes every argument is a
# full word.
_call.argtypes = (ctypes.c_long,) * (1 + MAX_ARGUMENTS)
_PADDING: Final = tuple((0,) * count for count in range(MAX_ARGUMENTS, -1, -1))


def this_arch() -> Arch:
    """The architecture we run on. ValueError for one that NUMBERS does not have."""
    return Arch(platform.machine())


_machine = platform.machine()
_numbers: Final[dict[Name, int]] = NUMBERS[Arch(_machine)] if _machine in {arch.value for arch in Arch} else {}


def syscall(name: Name, *args: int) -> int:
    """Make the call and return its result (0 or more).

    Raises OSError with the kernel's errno; an interrupted call is not repeated (InterruptedError, EINTR: only
    the caller knows what was done before the signal). NotImplementedError on an architecture that NUMBERS
    does not have.
    """
    number = _numbers.get(name)
    if number is None:
        raise NotImplementedError(f"system call {name}: no number known for {_machine}")
    result: int = _call(number, *args, *_PADDING[len(args)])
    if result < 0:
        raise failure(name)
    return result


def bound(name: Name, arguments: int) -> Callable[..., int]:
    """The call with exactly so many arguments, for what is called for each I/O: a third of the cost of `syscall`.

    Its result below 0 is for the caller to see, who then raises `failure(name)`.
    """
    number = _numbers.get(name)
    if number is None:
        return partial(syscall, name)
    call = _libc["syscall"]  # a function object of our own, unlike the attribute
    call.restype, call.argtypes = ctypes.c_long, (ctypes.c_long,) * (1 + arguments)
    return partial(call, number)


def failure(name: Name) -> OSError:
    """What the last call of this thread said."""
    code = ctypes.get_errno()
    return OSError(code, f"{name}: {os.strerror(code)}")
