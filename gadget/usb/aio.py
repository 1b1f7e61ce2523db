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

from common.syscalls import syscall

_IOCB_BYTES = 64  # struct iocb
_EVENT = struct.Struct("<QQqq")  # struct io_event: data, obj, res, res2
_FLAG_RESFD = 1  # IOCB_FLAG_RESFD
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
        self._free = list(range(depth))
        self._events = (ctypes.c_uint8 * (_EVENT.size * depth))()
        self._pointer = (ctypes.c_uint64 * 1)()
        self.writes = 0

    @property
    def outstanding(self) -> int:
        return self._depth - len(self._free)

    def submit(self, command: Command, fd: int, address: int, length: int) -> int:
        """Queue one transfer; returns its number. Transfers on one fd complete in the order of their submission.

        Raises BlockingIOError (EAGAIN) if `depth` transfers are outstanding, OSError(EBADF, EINVAL) for an fd that is
        closed, not open for this direction, or a directory. The state of the link is told by `completions`.
        """
        if not self._free:
            raise BlockingIOError(errno.EAGAIN, f"all {self._depth} transfers are outstanding")
        number = self._free[-1]
        iocb = self._iocbs[number]
        iocb.aio_data, iocb.aio_lio_opcode, iocb.aio_fildes = number, command, fd
        iocb.aio_buf, iocb.aio_nbytes, iocb.aio_offset = address, length, 0
        iocb.aio_flags, iocb.aio_resfd = _FLAG_RESFD, self.eventfd
        self._pointer[0] = ctypes.addressof(iocb)
        syscall("io_submit", self._context, 1, ctypes.addressof(self._pointer))
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

    def completions(self) -> list[tuple[int, int]]:
        """(number, result) of each transfer that has ended, in the order of their ends. Never waits.

        The result is a count of bytes or a negative errno. -EAGAIN (the endpoint was disabled at submission) and
        -ESHUTDOWN (it was disabled since) are link loss, -ECONNRESET is a transfer taken back; -EFAULT (memory that is
        gone) and -ENOMEM (its kmalloc failed) say nothing about the link, which stays up.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.eventfd)
        count = syscall("io_getevents", self._context, 0, self._depth, ctypes.addressof(self._events), 0)
        ended = []
        for index in range(count):
            number, _, result, _ = _EVENT.unpack_from(self._events, index * _EVENT.size)
            self._free.append(number)
            ended.append((number, result))
        return ended

    def close(self) -> None:
        """Cancel what is outstanding and wait for it (io_destroy). A second call does nothing."""
        if self._context:
            syscall("io_destroy", self._context)
            os.close(self.eventfd)
            self._context = 0
