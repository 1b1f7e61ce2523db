"""What a device offers of what the host's source can: a queue's arguments to the parameters of its ublk device. Pure.

Called by gadget.ublk.role when it makes a device.
"""

from collections.abc import Mapping
from typing import Any

from common import limits
from gadget.ublk.control import DeviceParams

_MAX_DISCARD = 64 << 20  # bytes; one discard must not keep a source busy for seconds


def params_for(args: Mapping[str, Any]) -> DeviceParams:
    """An operation that the source lacks is not offered: the block layer then tells its users so, or does without."""
    block_size, writable = int(args["block_size"]), not args.get("read_only")
    discard, zeroes = (writable and bool(args.get(name, True)) for name in ("discard", "write_zeroes"))
    physical = min(int(args.get("physical_block", 0)), limits.MAX_BLOCK_SIZE)  # more is no block of any disk
    return DeviceParams(
        size_bytes=int(args["size_bytes"]),
        block_size=block_size,
        max_io_bytes=int(args["max_io_bytes"]),
        read_only=not writable,
        discard_granularity_bytes=max(block_size, physical, limits.PAGE) if discard or zeroes else 0,
        max_discard_bytes=_MAX_DISCARD if discard else 0,
        max_write_zeroes_bytes=_MAX_DISCARD if zeroes else 0,
        physical_block_bytes=physical,
        optimal_io_bytes=int(args.get("optimal_io", 0)),
    )
