"""What a role counts of its I/O: totals, rates of the last whole second, latencies within a factor of two."""

import pytest

from common.iostats import BUCKETS, IoStats, percentile_ms
from common.wire import Op


def test_totals_tell_operations_bytes_and_errors_since_the_start() -> None:
    stats = IoStats(10.0)
    stats.done(Op.READ, 4096, 0.001, False, 10.1)
    stats.done(Op.WRITE, 8192, 0.001, False, 10.2)
    stats.done(Op.WRITE, 8192, 0.001, True, 10.2)
    stats.done(Op.FLUSH, 0, 0.001, False, 10.3)
    stats.done(Op.DISCARD, 65536, 0.001, False, 10.3)
    stats.done(Op.WRITE_ZEROES, 65536, 0.001, False, 10.3)  # is not counted by its kind, nor as anything else
    assert stats.status(10.4)["counters"] == {
        "read_count": 1,
        "write_count": 2,
        "flush_count": 1,
        "discard_count": 1,
        "read_bytes": 4096,
        "write_bytes": 8192,
        "error_count": 1,
    }


def test_rates_are_those_of_the_last_whole_window_and_end_with_the_load() -> None:
    stats = IoStats(0.0)
    for n in range(100):
        stats.done(Op.READ, 4096, 0.001, False, n / 100)
    told = stats.status(1.0)
    assert (told["read_iops"], told["read_bytes_s"], told["write_iops"]) == (100, 409600, 0)
    assert stats.status(1.5)["read_iops"] == 100, "the window after it is not whole yet"
    told = stats.status(2.0)
    assert (told["read_iops"], told["latency_ms"]) == (0, {"p50": None, "p99": None})
    assert sum(told["latency_log2_us"]) == 100, "the histogram is since the start"


@pytest.mark.parametrize("took_s", [0.0, 1e-6, 0.0007, 0.061, 3.0, 30.0])
def test_percentiles_are_within_a_factor_of_two(took_s: float) -> None:
    stats = IoStats(0.0)
    for _ in range(50):
        stats.done(Op.WRITE, 512, took_s, False, 0.5)
    for p in stats.status(1.0)["latency_ms"].values():
        assert took_s * 500 <= p <= max(took_s * 2000, 0.002)


def test_the_slow_hundredth_shows_in_p99_only() -> None:
    histogram = [0] * BUCKETS
    histogram[10], histogram[20] = 97, 3  # about 1 ms, about 1 s
    assert (percentile_ms(histogram, 0.5) or 0) < 1.1
    assert (percentile_ms(histogram, 0.99) or 0) > 500


def test_what_is_slower_than_the_last_bucket_is_counted_there() -> None:
    stats = IoStats(0.0)
    stats.done(Op.READ, 512, 3600.0, False, 0.1)
    assert stats.status(0.2)["latency_log2_us"][-1] == 1
