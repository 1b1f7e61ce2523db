"""ublk's kernel ABI, as in linux/ublk_cmd.h of Linux 6.12: opcodes, flags, struct layouts. No behaviour.

Structures carry the C names; tests compare them with the header where one is there. Both architectures we run
on are little-endian, so the layouts of the I/O path are `struct.Struct`s with explicit order. Used by
`control` and `device`.
"""

import ctypes
import struct
from enum import IntEnum, IntFlag
from typing import Final

from gadget.ublk.uring import SQE_HEAD

_IOC_WRITE: Final = 1
_IOC_READ: Final = 2


def _ioc(direction: int, number: int, size_bytes: int) -> int:
    """_IOC(direction, 'u', number, size) of asm-generic/ioctl.h: x86_64 and aarch64 both use it."""
    return direction << 30 | size_bytes << 16 | ord("u") << 8 | number


class ublksrv_ctrl_cmd(ctypes.Structure):
    """struct ublksrv_ctrl_cmd: the command area of a control SQE."""

    _fields_ = (
        ("dev_id", ctypes.c_uint32),
        ("queue_id", ctypes.c_uint16),
        ("len", ctypes.c_uint16),
        ("addr", ctypes.c_uint64),
        ("data", ctypes.c_uint64 * 1),
        ("dev_path_len", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("reserved", ctypes.c_uint32),
    )


class ublksrv_ctrl_dev_info(ctypes.Structure):
    """struct ublksrv_ctrl_dev_info. `ublksrv_flags` is the server's own: the kernel keeps it and gives it back."""

    _fields_ = (
        ("nr_hw_queues", ctypes.c_uint16),
        ("queue_depth", ctypes.c_uint16),
        ("state", ctypes.c_uint16),
        ("pad0", ctypes.c_uint16),
        ("max_io_buf_bytes", ctypes.c_uint32),
        ("dev_id", ctypes.c_uint32),
        ("ublksrv_pid", ctypes.c_int32),
        ("pad1", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("ublksrv_flags", ctypes.c_uint64),
        ("owner_uid", ctypes.c_uint32),
        ("owner_gid", ctypes.c_uint32),
        ("reserved1", ctypes.c_uint64),
        ("reserved2", ctypes.c_uint64),
    )
    nr_hw_queues: int
    queue_depth: int
    state: int
    max_io_buf_bytes: int
    dev_id: int
    ublksrv_pid: int
    flags: int
    ublksrv_flags: int
    owner_uid: int
    owner_gid: int


class ublksrv_io_desc(ctypes.Structure):
    """struct ublksrv_io_desc: one request, indexed by tag in the mapping of /dev/ublkcN. Read with IO_DESC."""

    _fields_ = (
        ("op_flags", ctypes.c_uint32),  # op in bits 0-7, UBLK_IO_F_* above, at their own bit
        ("nr_sectors", ctypes.c_uint32),
        ("start_sector", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    )


class ublksrv_io_cmd(ctypes.Structure):
    """struct ublksrv_io_cmd: the command area of an I/O SQE. Written with IO_SQE."""

    _fields_ = (
        ("q_id", ctypes.c_uint16),
        ("tag", ctypes.c_uint16),
        ("result", ctypes.c_int32),
        ("addr", ctypes.c_uint64),
    )


class ublk_param_basic(ctypes.Structure):
    """struct ublk_param_basic."""

    _fields_ = (
        ("attrs", ctypes.c_uint32),
        ("logical_bs_shift", ctypes.c_uint8),
        ("physical_bs_shift", ctypes.c_uint8),
        ("io_opt_shift", ctypes.c_uint8),
        ("io_min_shift", ctypes.c_uint8),
        ("max_sectors", ctypes.c_uint32),
        ("chunk_sectors", ctypes.c_uint32),
        ("dev_sectors", ctypes.c_uint64),
        ("virt_boundary_mask", ctypes.c_uint64),
    )
    attrs: int
    logical_bs_shift: int
    physical_bs_shift: int
    io_opt_shift: int
    io_min_shift: int
    max_sectors: int
    dev_sectors: int


class ublk_param_discard(ctypes.Structure):
    """struct ublk_param_discard."""

    _fields_ = (
        ("discard_alignment", ctypes.c_uint32),
        ("discard_granularity", ctypes.c_uint32),
        ("max_discard_sectors", ctypes.c_uint32),
        ("max_write_zeroes_sectors", ctypes.c_uint32),
        ("max_discard_segments", ctypes.c_uint16),
        ("reserved0", ctypes.c_uint16),
    )
    discard_alignment: int
    discard_granularity: int
    max_discard_sectors: int
    max_write_zeroes_sectors: int
    max_discard_segments: int


class ublk_param_devt(ctypes.Structure):
    """struct ublk_param_devt: read only; the disk's numbers are there once the device is started."""

    _fields_ = (
        ("char_major", ctypes.c_uint32),
        ("char_minor", ctypes.c_uint32),
        ("disk_major", ctypes.c_uint32),
        ("disk_minor", ctypes.c_uint32),
    )
    char_major: int
    char_minor: int
    disk_major: int
    disk_minor: int


class ublk_param_zoned(ctypes.Structure):
    """struct ublk_param_zoned. Not used; here so that ublk_params has its size."""

    _fields_ = (
        ("max_open_zones", ctypes.c_uint32),
        ("max_active_zones", ctypes.c_uint32),
        ("max_zone_append_sectors", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 20),
    )


class ublk_params(ctypes.Structure):
    """struct ublk_params as of 6.12; newer kernels take `len` for what this one does not know."""

    _fields_ = (
        ("len", ctypes.c_uint32),
        ("types", ctypes.c_uint32),
        ("basic", ublk_param_basic),
        ("discard", ublk_param_discard),
        ("devt", ublk_param_devt),
        ("zoned", ublk_param_zoned),
    )
    len: int
    types: int
    basic: ublk_param_basic
    discard: ublk_param_discard
    devt: ublk_param_devt


_CTRL: Final = ctypes.sizeof(ublksrv_ctrl_cmd)
_IO: Final = ctypes.sizeof(ublksrv_io_cmd)


class CtrlOp(IntEnum):
    """UBLK_U_CMD_*: opcodes for /dev/ublk-control, ioctl-encoded."""

    GET_DEV_INFO = _ioc(_IOC_READ, 0x02, _CTRL)
    ADD_DEV = _ioc(_IOC_READ | _IOC_WRITE, 0x04, _CTRL)
    DEL_DEV = _ioc(_IOC_READ | _IOC_WRITE, 0x05, _CTRL)
    START_DEV = _ioc(_IOC_READ | _IOC_WRITE, 0x06, _CTRL)
    STOP_DEV = _ioc(_IOC_READ | _IOC_WRITE, 0x07, _CTRL)
    SET_PARAMS = _ioc(_IOC_READ | _IOC_WRITE, 0x08, _CTRL)
    GET_PARAMS = _ioc(_IOC_READ, 0x09, _CTRL)
    START_USER_RECOVERY = _ioc(_IOC_READ | _IOC_WRITE, 0x10, _CTRL)
    END_USER_RECOVERY = _ioc(_IOC_READ | _IOC_WRITE, 0x11, _CTRL)
    GET_DEV_INFO2 = _ioc(_IOC_READ, 0x12, _CTRL)
    GET_FEATURES = _ioc(_IOC_READ, 0x13, _CTRL)
    DEL_DEV_ASYNC = _ioc(_IOC_READ, 0x14, _CTRL)
    UPDATE_SIZE = _ioc(_IOC_READ | _IOC_WRITE, 0x15, _CTRL)  # 6.16
    QUIESCE_DEV = _ioc(_IOC_READ | _IOC_WRITE, 0x16, _CTRL)  # 6.16


class IoOp(IntEnum):
    """UBLK_U_IO_*: opcodes for /dev/ublkcN, ioctl-encoded."""

    FETCH_REQ = _ioc(_IOC_READ | _IOC_WRITE, 0x20, _IO)
    COMMIT_AND_FETCH_REQ = _ioc(_IOC_READ | _IOC_WRITE, 0x21, _IO)


class Feature(IntFlag):
    """UBLK_F_*: what a device was made with, and (GET_FEATURES) what the driver can do."""

    SUPPORT_ZERO_COPY = 1 << 0
    URING_CMD_COMP_IN_TASK = 1 << 1
    NEED_GET_DATA = 1 << 2
    USER_RECOVERY = 1 << 3
    USER_RECOVERY_REISSUE = 1 << 4
    UNPRIVILEGED_DEV = 1 << 5
    CMD_IOCTL_ENCODE = 1 << 6
    USER_COPY = 1 << 7
    ZONED = 1 << 8
    USER_RECOVERY_FAIL_IO = 1 << 9  # 6.13
    UPDATE_SIZE = 1 << 10  # 6.16
    QUIESCE = 1 << 12  # 6.16


class DeviceState(IntEnum):
    """UBLK_S_DEV_*."""

    DEAD = 0  # no disk: never started, or stopped
    LIVE = 1  # started; its owner may have died a moment ago
    QUIESCED = 2  # started, its owner is dead, I/O waits
    FAIL_IO = 3  # as QUIESCED, but I/O fails (only with USER_RECOVERY_FAIL_IO, which we never ask for)


class BlockOp(IntEnum):
    """UBLK_IO_OP_*: what a request wants."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_SAME = 4
    WRITE_ZEROES = 5


class IoFlag(IntFlag):
    """UBLK_IO_F_*: flags of a request, at their bit in ublksrv_io_desc.op_flags."""

    FAILFAST_DEV = 1 << 8
    FAILFAST_TRANSPORT = 1 << 9
    FAILFAST_DRIVER = 1 << 10
    META = 1 << 11
    FUA = 1 << 13
    NOUNMAP = 1 << 15
    SWAP = 1 << 16


class Attribute(IntFlag):
    """UBLK_ATTR_*: attributes of the disk (ublk_param_basic.attrs)."""

    READ_ONLY = 1 << 0
    ROTATIONAL = 1 << 1
    VOLATILE_CACHE = 1 << 2
    FUA = 1 << 3


class ParamType(IntFlag):
    """UBLK_PARAM_TYPE_*: which parts of ublk_params are filled in."""

    BASIC = 1 << 0
    DISCARD = 1 << 1
    DEVT = 1 << 2
    ZONED = 1 << 3


UBLK_IO_RES_OK: Final = 0
UBLK_IO_RES_ABORT: Final = -19  # -ENODEV: this FETCH will never see a request, the device is stopping
UBLK_MAX_QUEUE_DEPTH: Final = 4096
UBLK_FEATURES_LEN: Final = 8  # bytes
NO_QUEUE: Final = 0xFFFF  # ublksrv_ctrl_cmd.queue_id of a command that is for no queue
SECTOR: Final = 512  # bytes; the block layer's, whatever the block size

IO_DESC: Final = struct.Struct("<IIQQ")  # ublksrv_io_desc
IO_SQE: Final = struct.Struct(SQE_HEAD + "HHiQ")  # io_uring_sqe with ublksrv_io_cmd: 64 bytes
CTRL_SQE: Final = struct.Struct(SQE_HEAD + "IHHQQHHI48x")  # io_uring_sqe with ublksrv_ctrl_cmd: 128 bytes
