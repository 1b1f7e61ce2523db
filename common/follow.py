"""Following one I/O through all processes: each role says each step of each request, under the same id on both sides.

Off, a step costs one comparison with None, as a kill point does (common.trace). `replug trace` switches it on, by the
control call `log_level` with `trace`. The id is `EXPORT.REQUEST`, both in hex as on the wire: the request id of wire v1
is made of the queue's generation and the request's sequence, so it is the same after a replay and another for each I/O.
A v0 peer is told slot numbers; ids of its lines are `EXPORT.SLOT`, and the gadget's usb says both.
"""

import time

from common.log import Field, Level, Log

_V1 = 0x8000_0000  # no slot has this bit, so an id of v1 is never one of v0

on = False  # worth asking before an id is made
_log: Log | None = None


def to(log: Log | None) -> None:
    """From now on steps go to this log; None: nowhere."""
    global _log, on
    _log, on = log, log is not None


def step(io: str, what: str, **fields: Field) -> None:
    """`what` has just happened to `io`. `us` is a monotonic time, to tell the distance of two steps on one machine."""
    if _log is not None:
        _log.line(Level.TRACE, what, {"io": io, "us": time.monotonic_ns() // 1000, **fields})


def request_id(generation: int, sequence: int) -> int:
    """For the wire, v1: 7 bits of the queue's generation (in ms or so) and 24 of the sequence.

    Unique among what is in flight: a queue has far fewer than 2**24 tags, and a successor's requests are held back
    until its predecessor's are answered.
    """
    return _V1 | (generation >> 20 & 0x7F) << 24 | sequence & 0xFF_FFFF


def io_id(export_id: int, number: int) -> str:
    return f"{export_id:08x}.{number:08x}"
