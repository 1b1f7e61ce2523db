"""libaio by raw system calls: transfers on FunctionFS endpoints, several deep, completions by an eventfd.

FunctionFS tells every error of an endpoint as the *completion* of the transfer, not to io_submit: a disabled endpoint
that was opened O_NONBLOCK completes with -EAGAIN at once. io_submit itself only refuses what is malformed.

io_uring is not used here: its requests on endpoint files cannot be cancelled, so a killed process would linger;
libaio's are cancelled when the last process that uses the submitter's memory ends (exit_aio).
ABI: linux/aio_abi.h.
"""

import contextlib
import ctypes
import errno
import os
import struct
from enum import IntEnum
from typing import Final

from common.syscalls import bound, failure, syscall

_EVENT = struct.Struct("<QQqq")  # struct io_event: data, obj, res, res2
_FLAG_RESFD = 1  # IOCB_FLAG_RESFD
_POINTER: Final = 8
_IOCB_BYTES: Final = 64  # struct iocb
WRITES_BEFORE_WRAP: Final = 1 << 31  # half of mm_struct.mm_count, an atomic_t: days of the smallest transfers


class Command(IntEnum):
    """IOCB_CMD_*."""

    PREAD = 0
    PWRITE = 1
    PWRITEV = 8  # `address` is that of an array of struct iovec, `length` how many


class _Iocb(ctypes.Structure):
    """struct iocb (little-endian)."""

    _fields_ = (
        ("aio_data", ctypes.c_uint64),
        ("aio_key", ctypes.c_uint32),
        ("aio_rw_flags", ctypes.c_uint32),
        ("aio_lio_opcode", ctypes.c_uint16),
        ("aio_reqprio", ctypes.c_int16),
        ("aio_fildes", ctypes.c_uint32),
        ("aio_buf", ctypes.c_uint64),
        ("aio_nbytes", ctypes.c_uint64),
        ("aio_offset", ctypes.c_int64),
        ("aio_reserved2", ctypes.c_uint64),
        ("aio_flags", ctypes.c_uint32),
        ("aio_resfd", ctypes.c_uint32),
    )


# Of struct iocb: aio_lio_opcode, aio_reqprio, aio_fildes, aio_buf, aio_nbytes, aio_offset, aio_reserved2, aio_flags
_WHAT: Final = struct.Struct("<HhIQQqQI")
_WHAT_AT: Final = _Iocb.aio_lio_opcode.offset
_io_submit, _io_getevents = bound("io_submit", 3), bound("io_getevents", 5)


class AioContext:
    """At most `depth` transfers outstanding. `eventfd` is readable when `completions` has something.

    Buffers are raw addresses: the caller keeps their memory mapped until the transfer has completed. A write's bytes
    are copied at `submit`, a read's at its end, whatever has become of the memory's owner by then.

    `writes` counts the transfers submitted to IN endpoints: Linux 6.12's f_fs takes a reference to our mm_struct for
    each (ffs_epfile_write_iter: mmgrab) and never gives it back. The mm_struct outlives us, and the counter is an int:
    a process that goes on for WRITES_BEFORE_WRAP of them should be replaced before they are many more.
    """

    def __init__(self, depth: int) -> None:
        context = ctypes.c_uint64(0)
        syscall("io_setup", depth, ctypes.addressof(context))
        self._context, self._depth = context.value, depth
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._iocbs = (_Iocb * depth)()
        for number, iocb in enumerate(self._iocbs):  # what is the same in all transfers
            iocb.aio_data, iocb.aio_resfd = number, self.eventfd
        self._iocb_bytes = memoryview(self._iocbs).cast("B")
        self._pointers = (ctypes.c_uint64 * depth)(*(ctypes.addressof(iocb) for iocb in self._iocbs))
        self._pointers_at = ctypes.addressof(self._pointers)
        self._free = list(range(depth))
        self._events = (ctypes.c_uint8 * (_EVENT.size * depth))()
        self._events_at, self._event_bytes = ctypes.addressof(self._events), memoryview(self._events)
        self.writes = 0

    @property
    def outstanding(self) -> int:
        return self._depth - len(self._free)

    def submit(self, command: Command, fd: int, address: int, length: int, told: bool = True) -> int:
        """Queue one transfer; returns its number. Transfers on one fd complete in the order of their submission.

        An end that is not `told` adds nothing to `eventfd`: it is found by whoever asks for `completions`.

        Raises BlockingIOError (EAGAIN) if `depth` transfers are outstanding, OSError(EBADF, EINVAL) for an fd that is
        closed, not open for this direction, or a directory. The state of the link is told by `completions`.
        """
        if not self._free:
            raise BlockingIOError(errno.EAGAIN, f"all {self._depth} transfers are outstanding")
        number = self._free[-1]
        flags = _FLAG_RESFD if told else 0
        _WHAT.pack_into(self._iocb_bytes, number * _IOCB_BYTES + _WHAT_AT, command, 0, fd, address, length, 0, 0, flags)
        if _io_submit(self._context, 1, self._pointers_at + number * _POINTER) < 0:
            raise failure("io_submit")
        self._free.pop()
        self.writes += command is not Command.PREAD
        return number

    def cancel(self, number: int) -> None:
        """Take a transfer back: it completes with -ECONNRESET, unless it has ended already or ends just now."""
        result = (ctypes.c_uint8 * _EVENT.size)()
        try:
            syscall("io_cancel", self._context, ctypes.addressof(self._iocbs[number]), ctypes.addressof(result))
        except OSError as error:  # EINPROGRESS: done, and the completion follows; EINVAL: nothing to take back
            if error.errno not in (errno.EINPROGRESS, errno.EINVAL):
                raise

    def completions(self, reset: bool = True) -> list[tuple[int, int]]:
        """(number, result) of each transfer that has ended, in the order of their ends. Never waits.

        `reset` makes `eventfd` unreadable, for who polls it; who is told of each addition to it has no need of that.

        The result is a count of bytes or a negative errno. -EAGAIN (the endpoint was disabled at submission) and
        -ESHUTDOWN (it was disabled since) are link loss, -ECONNRESET is a transfer taken back; -EFAULT (memory that is
        gone) and -ENOMEM (its kmalloc failed) say nothing about the link, which stays up.
        """
        if reset:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.eventfd)
        count = _io_getevents(self._context, 0, self._depth, self._events_at, 0)
        if count < 0:
            raise failure("io_getevents")
        ended = []
        for number, _, result, _ in _EVENT.iter_unpack(self._event_bytes[: count * _EVENT.size]):
            self._free.append(number)
            ended.append((number, result))
        return ended

    def close(self) -> None:
        """Cancel what is outstanding and wait for it (io_destroy). A second call does nothing."""
        if self._context:
            syscall("io_destroy", self._context)
            os.close(self.eventfd)
            self._context = 0
