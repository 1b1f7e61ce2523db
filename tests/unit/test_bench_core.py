"""`replug bench`: what is made of figures, without measuring any (issue 6, item 1)."""

import json
from pathlib import Path

import pytest

from tools.bench import hops, show
from tools.bench.core import (
    ALONE,
    CROWD_READ,
    LONE_READ,
    STREAM_READ,
    TOGETHER,
    Cost,
    Figure,
    Load,
    Pattern,
    Ratio,
    Table,
    compare,
    document,
    ratios,
)
from tools.bench.fio import figure


def made(system: str, load: str, iops: float, size_bytes: int = 4096, mean_us: float = 1000.0) -> Figure:
    operations = round(iops * 2)
    return Figure(system, load, 2.0, operations, operations * size_bytes, {"mean": mean_us})


def by_name(*figures: Figure) -> dict[str, Ratio]:
    return {ratio.name: ratio for ratio in ratios(Table(figures))}


def test_limit_of_the_whole_is_what_link_and_block_leave_of_one_processor() -> None:
    found = by_name(
        made("link", "read 64K x4", 1000, 1000),
        made("block", STREAM_READ.name, 3000, 1000),
        made("whole", STREAM_READ.name, 600, 1000),
    )["whole_read/limit"]
    assert found.value == pytest.approx(600 / 750) and found.reached


def test_lone_latency_is_compared_with_a_round_trip_and_a_block_read() -> None:
    found = by_name(
        made("link", "round trip 4K x1", 250, mean_us=4000),
        made("block", LONE_READ.name, 1000, mean_us=1000),
        made("whole", LONE_READ.name, 100, mean_us=10_001),
    )["whole_latency/parts"]
    assert found.value == pytest.approx(2.0002) and not found.reached


def test_of_several_rounds_and_patterns_the_fastest_counts() -> None:
    figures = [made("link", f"read {size}K x1", iops, size) for size, iops in ((4, 10.0), (64, 9.0), (64, 20.0))]
    best = Table(figures).best("link", "read ")
    assert best is not None and (best.load, best.iops) == ("read 64K x1", 20)


def test_many_exports_are_compared_with_one_and_with_each_other() -> None:
    each = [made("exports", f"{TOGETHER} {n}", 10 + n) for n in range(8)]
    found = by_name(made("exports", ALONE, 100), made("exports", TOGETHER, 95), *each)
    assert found["eight_exports/one"].value == pytest.approx(0.95)
    assert found["slowest_export/fastest"].value == pytest.approx(10 / 17)


def test_what_was_not_measured_gives_no_ratio() -> None:
    assert by_name(made("whole", LONE_READ.name, 100)) == {}


def test_ratio_worse_by_more_than_15_percent_is_a_regression_and_one_just_inside_is_none() -> None:
    up, down = Ratio("up", 0.86, 1, True, ""), Ratio("down", 1.14, 1, False, "")
    assert compare([up, down], {"up": 1.0, "down": 1.0}) == []
    worse = compare([Ratio("up", 0.84, 1, True, ""), Ratio("down", 1.16, 1, False, "")], {"up": 1.0, "down": 1.0})
    assert worse == ["up: 0.84, kept is 1.00: worse by 16%", "down: 1.16, kept is 1.00: worse by 16%"]


def test_kept_ratio_that_was_not_measured_is_a_regression() -> None:
    assert compare([], {"up": 1.0}) == ["up: not measured; kept is 1.00"]


def test_costs_are_told_per_gib_and_per_1000_operations() -> None:
    one = Figure("whole", LONE_READ.name, 1.0, 500, 1 << 29, {"mean": 1.0}, {"usb": Cost(3.0, 1000)})
    assert (one.cpu_per_gib("usb"), one.cpu_per_1000("usb"), one.switches_per_1000("usb")) == (6.0, 6.0, 2000.0)
    told = document({"kernel": "x"}, [one], {})["figures"][0]["costs"]["usb"]
    assert told == {"cpu_s": 3.0, "cpu_s_per_gib": 6.0, "cpu_s_per_1000": 6.0, "switches_per_1000": 2000.0}


def test_both_ways_of_a_mixed_load_count() -> None:
    way = {"total_ios": 10, "io_bytes": 40960, "runtime": 2000, "lat_ns": {"mean": 5e6}}
    way["clat_ns"] = {"percentile": {"50.000000": 4e6, "99.000000": 9e6}}
    found = figure("block", Load(Pattern.RANDOM_MIXED, 4096, 4), {"read": way, "write": way}, {})
    assert (found.operations, found.iops, found.latency_us) == (
        20,
        10.0,
        {"mean": 5000.0, "p50": 4000.0, "p99": 9000.0},
    )


def io(at: int, *names: str) -> list[tuple[str, int]]:
    return [(name, at + n * 1000) for n, name in enumerate(names)]


def test_steps_are_those_of_the_usual_way_and_a_disturbed_io_is_left_out() -> None:
    first, last = hops.FIRST, hops.LAST
    usual = (first, "gadget.usb.request.sending", last)
    records = [*io(0, *usual), *io(10_000, *usual), *io(20_000, first, "host.usb.urbs.ended", *usual[1:])]
    assert [(step.name, step.median_us) for step in hops.steps(reversed(records))] == [
        (f"{first} to gadget.usb.request.sending", 1.0),
        (f"gadget.usb.request.sending to {last}", 1.0),
    ]


def test_no_io_recorded_gives_no_steps() -> None:
    assert hops.steps([("gadget.usb.request.sending", 5)]) == []


def test_chart_has_a_bar_for_each_figure(tmp_path: Path) -> None:
    table = Table([made("whole", CROWD_READ.name, 100), made("block", STREAM_READ.name, 50, 1 << 18)])
    svg = show.chart(table)
    assert svg.count("<rect x=") == 2 and "whole: randread 4K x32" in svg


def test_kept_figures_have_every_ratio_that_is_compared() -> None:
    kept = json.loads((Path(__file__).parents[2] / "docs" / "bench.json").read_text())
    assert {"whole_read/limit", "whole_write/limit", "whole_latency/parts", "whole_x32/whole_x1"} <= set(kept["ratios"])
