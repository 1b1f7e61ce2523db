"""System `exports`: eight exports at once against one of them alone, with as many I/Os in flight in all.

One slow or busy export must not cost the others, and many must not cost more than one.
"""

from collections.abc import Iterator
from pathlib import Path

from tools.bench import fio, whole
from tools.bench.core import ALONE, TOGETHER, Figure, Load, Pattern
from tools.bench.system import DISK_BYTES, disk_file

_COUNT = 8
_EACH = Load(Pattern.RANDOM_READ, 4096, 4)
_ONE = Load(Pattern.RANDOM_READ, 4096, 4 * _COUNT)


def measure(place: Path, seconds: float) -> Iterator[Figure]:
    """One alone, then all of them: a figure for each, and what they do together."""
    files = [disk_file(place, f"e{number}.img", DISK_BYTES // _COUNT) for number in range(_COUNT)]
    with whole.up(files) as devices:
        alone = fio.run("exports", devices[0], _ONE, seconds, whole.processes)
        yield _named(alone, ALONE)
        each = fio.run_many("exports", devices, _EACH, seconds)
        for number, one in enumerate(each):
            yield _named(one, f"{TOGETHER} {number}")
        longest = max(one.seconds for one in each)
        yield Figure("exports", TOGETHER, longest, sum(f.operations for f in each), sum(f.size_bytes for f in each))


def _named(figure: Figure, load: str) -> Figure:
    f = figure
    return Figure(f.system, load, f.seconds, f.operations, f.size_bytes, f.latency_us, f.costs)
