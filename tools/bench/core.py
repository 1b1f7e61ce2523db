"""Loads, figures, the ratios made of them, and the comparison with kept ones. Pure: nothing here measures.

Figures of different runs are not compared, only ratios are: a run shares its machine with whatever else there is, and
an emulated guest is ten times slower than what it runs on. Called by tools.bench.run and tools.bench.show.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

VERSION: Final = 1  # of the document
WORSE: Final = 0.15  # a ratio that is worse by more than this is a regression
MIB: Final = 1 << 20


class Pattern(StrEnum):
    """fio's names."""

    READ = "read"
    WRITE = "write"
    MIXED = "rw"
    RANDOM_READ = "randread"
    RANDOM_WRITE = "randwrite"
    RANDOM_MIXED = "randrw"


@dataclass(frozen=True, order=True)
class Load:
    """What a block device is asked for."""

    pattern: Pattern
    block_bytes: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.block_bytes >> 10}K x{self.depth}"


LONE_READ: Final = Load(Pattern.RANDOM_READ, 4096, 1)
CROWD_READ: Final = Load(Pattern.RANDOM_READ, 4096, 32)
STREAM_READ: Final = Load(Pattern.READ, 256 << 10, 4)
STREAM_WRITE: Final = Load(Pattern.WRITE, 256 << 10, 4)
ALONE: Final = "one export alone, randread 4K x32"
TOGETHER: Final = "eight at once, randread 4K x4 each"
RATIO_LOADS: Final = (STREAM_READ, STREAM_WRITE, LONE_READ, CROWD_READ)
ALL_LOADS: Final = tuple(Load(p, size, depth) for size in (4096, 256 << 10) for p in Pattern for depth in (1, 4, 32))


@dataclass(frozen=True)
class Cost:
    """What one process spent on a load: CPU seconds, and how often it was switched away from."""

    cpu_s: float
    switches: int


@dataclass(frozen=True)
class Figure:
    """One system under one load. `latency_us`: mean, p50, p95, p99. `costs`: by role."""

    system: str
    load: str
    seconds: float
    operations: int
    size_bytes: int
    latency_us: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def iops(self) -> float:
        return self.operations / self.seconds

    @property
    def bytes_s(self) -> float:
        return self.size_bytes / self.seconds

    def cpu_per_gib(self, role: str) -> float:
        return self.costs[role].cpu_s * (1 << 30) / self.size_bytes if self.size_bytes else 0.0

    def cpu_per_1000(self, role: str) -> float:
        return self.costs[role].cpu_s * 1000 / self.operations if self.operations else 0.0

    def switches_per_1000(self, role: str) -> float:
        return self.costs[role].switches * 1000 / self.operations if self.operations else 0.0

    def document(self) -> dict[str, Any]:
        """For --json."""
        costs = {
            role: {
                "cpu_s": round(cost.cpu_s, 4),
                "cpu_s_per_gib": round(self.cpu_per_gib(role), 3),
                "cpu_s_per_1000": round(self.cpu_per_1000(role), 4),
                "switches_per_1000": round(self.switches_per_1000(role), 1),
            }
            for role, cost in self.costs.items()
        }
        fields = {key: value for key, value in asdict(self).items() if key != "costs"}
        return {**fields, "iops": round(self.iops, 1), "bytes_s": round(self.bytes_s), "costs": costs}


@dataclass(frozen=True)
class Step:
    """From one trace point to the next, of a lone I/O."""

    name: str
    median_us: float


@dataclass(frozen=True)
class Ratio:
    """A figure of one run divided by another of the same run. `goal`: what issue and limits ask for."""

    name: str
    value: float
    goal: float
    larger_is_better: bool
    meaning: str

    @property
    def reached(self) -> bool:
        return self.value >= self.goal if self.larger_is_better else self.value <= self.goal

    def worse_than(self, kept: float) -> float:
        """By what share it is worse than `kept`; negative: better."""
        if self.larger_is_better:
            return 1 - self.value / kept if kept else 0.0
        return self.value / kept - 1 if kept else 0.0


class Table:
    """Figures of one run by system and load; of several rounds the fastest, as what disturbs only ever slows down."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._best: dict[tuple[str, str], Figure] = {}
        for figure in figures:
            before = self._best.get((figure.system, figure.load))
            if before is None or figure.iops > before.iops:
                self._best[figure.system, figure.load] = figure

    def figures(self) -> list[Figure]:
        return list(self._best.values())

    def get(self, system: str, load: str) -> Figure | None:
        return self._best.get((system, load))

    def best(self, system: str, prefix: str) -> Figure | None:
        """The one of most bytes each second among the loads that begin with `prefix`."""
        found = [f for (name, load), f in self._best.items() if name == system and load.startswith(prefix)]
        return max(found, key=lambda figure: figure.bytes_s, default=None)


def ratios(table: Table) -> list[Ratio]:
    """All that can be said of what was measured."""
    return [
        ratio for ratio in (*_yardsticks(table), *_streams(table), *_small(table), *_many(table)) if ratio is not None
    ]


def _yardsticks(table: Table) -> Iterable[Ratio | None]:
    for way, load in (("read", STREAM_READ), ("write", STREAM_WRITE)):
        yield _ratio(
            f"link_{way}/mass_storage",
            _speed(table.best("link", f"{way} ")),
            _speed(table.get("mass_storage", load.name)),
            0.5,
            "the bare endpoints against the kernel's own disk over the same controller",
        )
    yield _ratio(
        "block_4k/mass_storage",
        _iops(table.get("block", LONE_READ.name)),
        _iops(table.get("mass_storage", LONE_READ.name)),
        1.5,
        "our ublk worker alone against that disk, IOPS of one 4K read at a time",
    )


def _streams(table: Table) -> Iterable[Ratio | None]:
    for way, load in (("read", STREAM_READ), ("write", STREAM_WRITE)):
        link, block = _speed(table.best("link", f"{way} ")), _speed(table.get("block", load.name))
        limit = 1 / (1 / link + 1 / block) if link and block else None
        yield _ratio(
            f"whole_{way}/limit",
            _speed(table.get("whole", load.name)),
            limit,
            0.8,
            "256K x4 against what link and block leave of one processor: 1 / (1/link + 1/block)",
        )


def _small(table: Table) -> Iterable[Ratio | None]:
    trip, block = _mean_us(table.get("link", "round trip 4K x1")), _mean_us(table.get("block", LONE_READ.name))
    lone, crowd = table.get("whole", LONE_READ.name), _iops(table.get("whole", CROWD_READ.name))
    yield _ratio(
        "whole_latency/parts",
        _mean_us(lone),
        trip + block if trip and block else None,
        2.0,
        "a lone 4K read against one link round trip and one block read",
        larger_is_better=False,
    )
    yield _ratio("whole_x32/whole_x1", crowd, _iops(lone), 4.0, "4K reads: a crowd against one")
    yield _ratio(
        "whole_x32/mass_storage_x32",
        crowd,
        _iops(table.get("mass_storage", CROWD_READ.name)),
        1.0,
        "4K reads at depth 32 against the kernel's own disk over the same controller",
    )


def _many(table: Table) -> Iterable[Ratio | None]:
    one, all_ = _iops(table.get("exports", ALONE)), _iops(table.get("exports", TOGETHER))
    yield _ratio("eight_exports/one", all_, one, 0.9, "the total of eight exports at once against one of them alone")
    each = [f.iops for f in table.figures() if f.system == "exports" and f.load.startswith(f"{TOGETHER} ")]
    least, most = min(each, default=None), max(each, default=None)
    yield _ratio("slowest_export/fastest", least, most, 0.75, "of eight exports that ask for the same")


def _speed(figure: Figure | None) -> float | None:
    return figure.bytes_s if figure else None


def _iops(figure: Figure | None) -> float | None:
    return figure.iops if figure else None


def _mean_us(figure: Figure | None) -> float | None:
    return figure.latency_us["mean"] if figure else None


def _ratio(
    name: str, part: float | None, whole: float | None, goal: float, meaning: str, larger_is_better: bool = True
) -> Ratio | None:
    if not part or not whole:
        return None
    return Ratio(name, part / whole, goal, larger_is_better, meaning)


def document(machine: Mapping[str, Any], figures: Iterable[Figure], extra: Mapping[str, Any]) -> dict[str, Any]:
    """For --json, and what `compare` reads."""
    table = Table(figures)
    return {
        "version": VERSION,
        "machine": dict(machine),
        "ratios": {r.name: round(r.value, 3) for r in ratios(table)},
        "figures": [figure.document() for figure in table.figures()],
        **extra,
    }


def compare(now: Iterable[Ratio], kept: Mapping[str, float]) -> list[str]:
    """One line for each regression: a ratio that is worse than the kept one by more than WORSE, or is missing."""
    by_name = {ratio.name: ratio for ratio in now}
    lines = []
    for name, value in kept.items():
        ratio = by_name.get(name)
        if ratio is None:
            lines.append(f"{name}: not measured; kept is {value:.2f}")
        elif ratio.worse_than(value) > WORSE:
            lines.append(f"{name}: {ratio.value:.2f}, kept is {value:.2f}: worse by {ratio.worse_than(value):.0%}")
    return lines
