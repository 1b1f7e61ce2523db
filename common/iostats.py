"""Counts of one export's I/O: by operation, bytes, errors, a log2 histogram of latencies, and rates of the last second.

Fixed lists and integers only: it runs once for each I/O, in gadget/ublk/role.py and host/source/role.py. No clock: time
comes in. What it tells becomes the `exports` of `replug status --json`.
"""

from typing import Any

WINDOW_S = 1.0  # rates are told over the last whole window of at least this length
BUCKETS = 27  # bucket n: below 2**n microseconds; the last one, from 34 s, takes all that is slower
_OPS = ("read", "write", "flush", "discard")  # in the order of common.wire.Op
_READ, _WRITE = 0, 1
Histogram = list[int]


class IoStats:
    """Totals since the start of this process, and what the last window says."""

    def __init__(self, now: float) -> None:
        self._totals = [0] * (len(_OPS) + 3)  # operations, then bytes read, bytes written, errors
        self._latency: Histogram = [0] * BUCKETS
        self._sum_s = 0.0
        self._slowest_s = [0.0, 0.0]  # of the last whole window, and of this one
        self._since, self._totals_then, self._latency_then = now, list(self._totals), list(self._latency)
        self._window: dict[str, Any] = _rates([0] * len(self._totals), [0] * BUCKETS, WINDOW_S)

    def done(self, op: int, size_bytes: int, took_s: float, failed: bool, now: float) -> None:
        """One I/O has ended. `op` is a common.wire.Op; the bytes of a failed one do not count as moved."""
        if now - self._since >= WINDOW_S:
            self._roll(now)
        totals = self._totals
        if op < len(_OPS):  # WRITE_ZEROES is behind them
            totals[op] += 1
        if failed:
            totals[6] += 1
        elif op <= _WRITE:
            totals[4 + op] += size_bytes
        self._latency[min(int(took_s * 1e6).bit_length(), BUCKETS - 1)] += 1
        self._sum_s += took_s
        if took_s > self._slowest_s[1]:
            self._slowest_s[1] = took_s

    def status(self, now: float) -> dict[str, Any]:
        """`ops`, bytes, errors and histogram since the start; rates and percentiles of the last whole window."""
        if now - self._since >= WINDOW_S:
            self._roll(now)
        return {
            **self._window,
            "counters": {
                **{f"{name}_count": count for name, count in zip(_OPS, self._totals, strict=False)},
                "read_bytes": self._totals[4],
                "write_bytes": self._totals[5],
                "error_count": self._totals[6],
            },
            "latency_log2_us": list(self._latency),
            "latency_sum_s": round(self._sum_s, 6),
            "slowest_ms": round(max(self._slowest_s) * 1000, 1),
        }

    def _roll(self, now: float) -> None:
        """Ends the window. After a long idle time it is a long one, and its rates are small: that is the truth."""
        moved = [a - b for a, b in zip(self._totals, self._totals_then, strict=True)]
        latency = [a - b for a, b in zip(self._latency, self._latency_then, strict=True)]
        self._window = _rates(moved, latency, now - self._since)
        self._slowest_s = [self._slowest_s[1], 0.0]
        self._since, self._totals_then, self._latency_then = now, list(self._totals), list(self._latency)


def _rates(moved: list[int], latency: Histogram, length_s: float) -> dict[str, Any]:
    return {
        "read_iops": round(moved[_READ] / length_s, 1),
        "write_iops": round(moved[_WRITE] / length_s, 1),
        "read_bytes_s": round(moved[4] / length_s),
        "write_bytes_s": round(moved[5] / length_s),
        "latency_ms": {"p50": percentile_ms(latency, 0.5), "p99": percentile_ms(latency, 0.99)},
    }


def percentile_ms(histogram: Histogram, share: float) -> float | None:
    """The latency that `share` of the I/Os stayed below; None if there were none. Off by less than a factor of 2."""
    total = sum(histogram)
    if not total:
        return None
    left = share * total
    for bucket, count in enumerate(histogram):
        if count >= left:
            low, high = (1 << bucket) >> 1, 1 << bucket
            return round((low + (high - low) * left / count) / 1000, 3)
        left -= count
    return round((1 << (len(histogram) - 1)) / 1000, 3)
