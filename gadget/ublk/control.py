"""/dev/ublk-control: make, start, stop, recover and inspect ublk devices. And what to do with a device that is there.

Each method is one command, run to its end: no loops, no retries, no policy; who calls decides what EBUSY
means. `plan` is the decision of a (re)starting queue as a pure table. Every command may raise OSError(EPERM)
without CAP_SYS_ADMIN. Some wait for the device's mutex, which the kernel holds without regard to signals:
what must end in bounded time is asked from a process that one can leave behind.
"""

import ctypes
import errno
import os
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Self

from common.errors import Gone
from gadget.ublk.abi import (
    CTRL_SQE,
    NO_QUEUE,
    SECTOR,
    UBLK_FEATURES_LEN,
    Attribute,
    CtrlOp,
    DeviceState,
    Feature,
    ParamType,
    ublk_params,
    ublksrv_ctrl_dev_info,
)
from gadget.ublk.uring import IORING_OP_URING_CMD, Ring

CONTROL_PATH: Final = "/dev/ublk-control"
RECOVERABLE: Final = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
WISHED: Final = Feature.UPDATE_SIZE | Feature.QUIESCE  # said at ADD where the driver offers them
_KNOWN_FEATURES: Final = (1 << 64) - 1


@dataclass(frozen=True)
class DeviceInfo:
    """struct ublksrv_ctrl_dev_info. `state` is an int when a newer kernel has one we do not know."""

    dev_id: int
    depth: int
    max_io_bytes: int
    state: DeviceState | int = DeviceState.DEAD
    pid: int = -1  # of the server, -1 if not started
    flags: int = 0  # Feature bits
    mark: int = 0  # ublksrv_flags
    hw_queues: int = 1
    owner_uid: int = 0
    owner_gid: int = 0


@dataclass(frozen=True)
class DeviceParams:
    """struct ublk_params, in bytes. A zero `discard_granularity_bytes` means: no discard, no write zeroes."""

    size_bytes: int
    block_size: int
    max_io_bytes: int
    read_only: bool = False
    volatile_cache: bool = True
    fua: bool = True
    discard_granularity_bytes: int = 0
    max_discard_bytes: int = 0
    max_write_zeroes_bytes: int = 0
    physical_block_bytes: int = 0  # 0, like the next: as the block size
    optimal_io_bytes: int = 0

    def to_abi(self) -> ublk_params:
        """For SET_PARAMS. ValueError for sizes that cannot be expressed; what the driver refuses it says itself."""
        shift = self.block_size.bit_length() - 1
        if self.block_size != 1 << shift:
            raise ValueError(f"block size {self.block_size} is not a power of two")
        if self.size_bytes % self.block_size or self.max_io_bytes % self.block_size:
            raise ValueError(f"size {self.size_bytes} or {self.max_io_bytes}: no multiple of {self.block_size}")
        params = ublk_params(len=ctypes.sizeof(ublk_params), types=ParamType.BASIC)
        params.basic.attrs = (
            self.read_only * Attribute.READ_ONLY
            | self.volatile_cache * Attribute.VOLATILE_CACHE
            | self.fua * Attribute.FUA
        )
        physical, optimal = (_shift(size) for size in (self.physical_block_bytes, self.optimal_io_bytes))
        params.basic.logical_bs_shift = shift
        params.basic.physical_bs_shift = params.basic.io_min_shift = max(shift, physical)
        params.basic.io_opt_shift = max(params.basic.io_min_shift, optimal)
        params.basic.max_sectors = self.max_io_bytes // SECTOR
        params.basic.dev_sectors = self.size_bytes // SECTOR
        if self.discard_granularity_bytes:
            params.types |= ParamType.DISCARD
            params.discard.discard_granularity = self.discard_granularity_bytes
            params.discard.max_discard_sectors = self.max_discard_bytes // SECTOR
            params.discard.max_write_zeroes_sectors = self.max_write_zeroes_bytes // SECTOR
            params.discard.max_discard_segments = 1  # all the driver takes
        return params

    @staticmethod
    def from_abi(params: ublk_params) -> "DeviceParams":
        """Of GET_PARAMS."""
        basic, discard = params.basic, params.discard
        has_discard = bool(params.types & ParamType.DISCARD)
        return DeviceParams(
            size_bytes=basic.dev_sectors * SECTOR,
            block_size=1 << basic.logical_bs_shift,
            max_io_bytes=basic.max_sectors * SECTOR,
            read_only=bool(basic.attrs & Attribute.READ_ONLY),
            volatile_cache=bool(basic.attrs & Attribute.VOLATILE_CACHE),
            fua=bool(basic.attrs & Attribute.FUA),
            discard_granularity_bytes=discard.discard_granularity if has_discard else 0,
            max_discard_bytes=discard.max_discard_sectors * SECTOR if has_discard else 0,
            max_write_zeroes_bytes=discard.max_write_zeroes_sectors * SECTOR if has_discard else 0,
            physical_block_bytes=_bytes(basic.physical_bs_shift, basic.logical_bs_shift),
            optimal_io_bytes=_bytes(basic.io_opt_shift, basic.physical_bs_shift),
        )


def _shift(size_bytes: int) -> int:
    """The driver keeps powers of two as shifts; what is none is not said."""
    return size_bytes.bit_length() - 1 if size_bytes and not size_bytes & (size_bytes - 1) else 0


def _bytes(shift: int, least: int) -> int:
    return 1 << shift if shift > least else 0


class Plan(Enum):
    """What a (re)starting queue does with the device id it was given. Never: take another one."""

    ADD = auto()  # nothing there: ADD_DEV, SET_PARAMS, open, FETCH, START_DEV
    RECOVER = auto()  # ours, with a disk: START_USER_RECOVERY (see there), open, FETCH, END_USER_RECOVERY
    RECREATE = auto()  # ours, without a disk: delete_async, then as ADD (EEXIST: a user of the old disk holds it)
    FOREIGN = auto()  # somebody else's, or another export's: hands off, and say so


# DEAD: killed between ADD_DEV and START_DEV, or stopped. Its FETCHes are gone and cannot be given again.
# LIVE: the kernel may not have noticed the death yet; START_USER_RECOVERY says EBUSY until it has.
_PLAN_OF_OURS: Final[dict[int, Plan]] = {
    DeviceState.DEAD: Plan.RECREATE,
    DeviceState.LIVE: Plan.RECOVER,
    DeviceState.QUIESCED: Plan.RECOVER,
}


def plan(info: DeviceInfo | None, mark: int) -> Plan:
    """What to do about the device `info` (None: there is none) to serve the export of `mark` with it. Pure."""
    if info is None:
        return Plan.ADD
    if info.mark != mark or info.flags & RECOVERABLE != RECOVERABLE:
        return Plan.FOREIGN
    return _PLAN_OF_OURS.get(info.state, Plan.FOREIGN)


class Control:
    """An open /dev/ublk-control. One thread at a time; a thread that may block for long has its own.

    `timeout_s`: after so long a command raises TimeoutError and this object is closed; the command itself
    goes on in the kernel (it cannot be called back) and keeps the process from exiting while it waits for a
    mutex. None: wait. Raises FileNotFoundError (ENOENT) if the ublk_drv module is not loaded, PermissionError
    (EACCES); and as Ring.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self._sequence = 0
        self._fd = os.open(CONTROL_PATH, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._ring: Ring | None = Ring(2, wide=True)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Twice is harmless."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
            os.close(self._fd)

    def features(self) -> Feature:
        """What the driver can do (UBLK_U_CMD_GET_FEATURES, Linux 6.5). OSError(EOPNOTSUPP or ENODEV) on older ones."""
        buffer = (ctypes.c_uint8 * UBLK_FEATURES_LEN)()
        self._command(CtrlOp.GET_FEATURES, 0, buffer)
        return Feature(int.from_bytes(bytes(buffer), "little") & _KNOWN_FEATURES)

    def add(self, dev_id: int, depth: int, max_io_bytes: int, mark: int, flags: int = RECOVERABLE) -> DeviceInfo:
        """Make /dev/ublkc<dev_id>, with one hardware queue (UBLK_U_CMD_ADD_DEV). Returns what the driver made of it.

        `mark` is kept for us in ublksrv_flags (see gadget.ublk.mark). dev_id -1 lets the kernel choose.
        Raises FileExistsError (EEXIST) if the id is taken, also by a deleted device that somebody still holds
        open; OSError(EINVAL) for a depth outside 1..4096, ENOMEM.
        """
        info = ublksrv_ctrl_dev_info(
            nr_hw_queues=1,
            queue_depth=depth,
            max_io_buf_bytes=max_io_bytes,
            dev_id=dev_id & 0xFFFFFFFF,
            ublksrv_pid=-1,
            flags=flags | Feature.CMD_IOCTL_ENCODE,
            ublksrv_flags=mark,
        )
        self._command(CtrlOp.ADD_DEV, dev_id & 0xFFFFFFFF, info)
        return _info_of(info)

    def delete(self, dev_id: int) -> None:
        """Stop and remove the device, and wait until its id is free (UBLK_U_CMD_DEL_DEV).

        Blocks while anybody holds /dev/ublkbN or /dev/ublkcN open. Raises OSError(ENODEV) if there is none.
        """
        self._command(CtrlOp.DEL_DEV, dev_id)

    def delete_async(self, dev_id: int) -> None:
        """Stop and remove the device; the id is free once the last holder lets go (UBLK_U_CMD_DEL_DEV_ASYNC, 6.6).

        The stop is the same as `stop`, and may block as that does. Raises OSError(ENODEV) if there is none.
        """
        self._command(CtrlOp.DEL_DEV_ASYNC, dev_id)

    def start(self, dev_id: int, pid: int) -> None:
        """Make /dev/ublkb<dev_id> appear (UBLK_U_CMD_START_DEV). `pid`: of the process that FETCHed.

        Blocks until all FETCHes are in. Scans partitions, reading the new disk with the device's mutex held,
        unless the last FETCH came from a thread without CAP_SYS_ADMIN (device.without_sys_admin): then it
        does no I/O. Raises OSError: ENODEV no such device; EINVAL without parameters; EEXIST started already
        (EINVAL on 7.3), or a stopped disk of this id is still held open.
        """
        self._command(CtrlOp.START_DEV, dev_id, data=pid)

    def stop(self, dev_id: int) -> None:
        """Remove the disk; the device stays, DEAD (UBLK_U_CMD_STOP_DEV). FETCHes of a living server end with ENODEV.

        On a LIVE device it waits, with the mutex held, until the server has committed what it has; what is
        queued fails with EIO. On a QUIESCED one all that waits fails with EIO at once. Stopped twice is
        harmless. Raises OSError(ENODEV) if there is none.
        """
        self._command(CtrlOp.STOP_DEV, dev_id)

    def set_params(self, dev_id: int, params: DeviceParams) -> None:
        """Set size and limits, between `add` and `start` (UBLK_U_CMD_SET_PARAMS).

        Raises PermissionError (EACCES) once started; OSError(EINVAL) for a block size above the page size or
        below 512, for max_io_bytes above the device's or below a page; ENODEV.
        """
        self._command(CtrlOp.SET_PARAMS, dev_id, params.to_abi())

    def get_params(self, dev_id: int) -> DeviceParams:
        """What `set_params` has set; all zero (block size 1) if it never was (UBLK_U_CMD_GET_PARAMS).
        OSError(ENODEV).
        """
        params = ublk_params(len=ctypes.sizeof(ublk_params))
        self._command(CtrlOp.GET_PARAMS, dev_id, params)
        return DeviceParams.from_abi(params)

    def info(self, dev_id: int) -> DeviceInfo:
        """What the driver knows of a device (UBLK_U_CMD_GET_DEV_INFO2).

        Raises OSError(ENODEV) if there is none; FileNotFoundError (ENOENT) if it was deleted and somebody
        still holds it open (its node is gone, its id still taken).
        """
        path = f"/dev/ublkc{dev_id}\0".encode()
        size = ctypes.sizeof(ublksrv_ctrl_dev_info)
        buffer = (ctypes.c_uint8 * (len(path) + size)).from_buffer_copy(path + bytes(size))
        self._command(CtrlOp.GET_DEV_INFO2, dev_id, buffer, dev_path_len=len(path))
        return _info_of(ublksrv_ctrl_dev_info.from_buffer(buffer, len(path)))

    def find(self, dev_id: int) -> DeviceInfo | None:
        """`info`, or None if there is no such device. Still raises FileNotFoundError for one that is half gone."""
        try:
            return self.info(dev_id)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def start_user_recovery(self, dev_id: int) -> None:
        """Begin taking over a device whose owner died (UBLK_U_CMD_START_USER_RECOVERY).

        Raises OSError(EBUSY) while the owner lives, its ring is still being torn down, or anyone (udev, for a
        moment) has /dev/ublkcN open: ask again; OSError(ENODEV) if there is none. OSError(EINVAL) if it was
        made without USER_RECOVERY, or if there is nothing to begin because a recovery has begun: a
        predecessor died between this command and its FETCHes. For a QUIESCED device of ours EINVAL therefore
        means: go on, open and FETCH. (7.3 begins it again, without a word.)
        """
        self._command(CtrlOp.START_USER_RECOVERY, dev_id)

    def end_user_recovery(self, dev_id: int, pid: int) -> None:
        """Let I/O flow again, what was in flight first (UBLK_U_CMD_END_USER_RECOVERY). `pid`: who FETCHed, and only it.

        Blocks until all FETCHes are in. Raises OSError: ENODEV no such device; EBUSY if it is not QUIESCED.
        """
        self._command(CtrlOp.END_USER_RECOVERY, dev_id, data=pid)

    def update_size(self, dev_id: int, size_bytes: int) -> None:
        """Change the disk's size; its users see it at once, I/O is not held up (UBLK_U_CMD_UPDATE_SIZE, Linux 6.16).

        Only of a started device: drivers have taken the disk for granted. Raises OSError(EOPNOTSUPP or EINVAL) on older
        kernels: ask `features` first; ENODEV. ValueError for a size that is no whole sectors.
        """
        if size_bytes % SECTOR:
            raise ValueError(f"size {size_bytes} is no multiple of {SECTOR}")
        self._command(CtrlOp.UPDATE_SIZE, dev_id, data=size_bytes // SECTOR)

    def quiesce(self, dev_id: int, timeout_ms: int) -> None:
        """Hand out no request any more: what comes waits for the next owner (UBLK_U_CMD_QUIESCE_DEV, Linux 6.16).

        Returns when the FETCHes that wait have ended (ABORT); requests that the server has can still be committed. The
        kernel waits for a FETCH to be idle first, `timeout_ms` at most (0: for ever). Raises OSError: EOPNOTSUPP for a
        device made without Feature.QUIESCE; EBUSY after the timeout; ENODEV for one without a disk.
        """
        self._command(CtrlOp.QUIESCE_DEV, dev_id, data=timeout_ms)

    def _command(
        self, op: CtrlOp, dev_id: int, buffer: "_Buffer | None" = None, data: int = 0, dev_path_len: int = 0
    ) -> None:
        if self._ring is None:
            raise Gone("ublk control: closed after a command that did not end: open another")
        self._sequence += 1
        length, address = (ctypes.sizeof(buffer), ctypes.addressof(buffer)) if buffer is not None else (0, 0)
        head = (IORING_OP_URING_CMD, 0, 0, self._fd, op, 0, 0, 0, 0, self._sequence, 0, 0, 0)
        command = (dev_id, NO_QUEUE, length, address, data, dev_path_len, 0, 0)
        self._ring.prepare(CTRL_SQE, *head, *command)
        try:
            self._ring.wait(timeout_s=self._timeout_s)
        except BaseException:
            # The kernel still has the command, and the address of its buffer: never free that, never use this
            # ring.
            _abandoned.append(buffer)
            self.close()
            raise
        for _, result, _ in self._ring.completions():
            if result < 0:
                raise OSError(-result, f"ublk {op.name} of device {dev_id}: {os.strerror(-result)}")


_Buffer = ctypes.Structure | ctypes.Array[ctypes.c_uint8]
_abandoned: list[_Buffer | None] = []


def _info_of(info: ublksrv_ctrl_dev_info) -> DeviceInfo:
    known = {state.value for state in DeviceState}
    return DeviceInfo(
        dev_id=info.dev_id,
        depth=info.queue_depth,
        max_io_bytes=info.max_io_buf_bytes,
        state=DeviceState(info.state) if info.state in known else info.state,
        pid=info.ublksrv_pid,
        flags=info.flags,
        mark=info.ublksrv_flags,
        hw_queues=info.nr_hw_queues,
        owner_uid=info.owner_uid,
        owner_gid=info.owner_gid,
    )
