"""What a long run makes of its samples: the verdict over each role's memory and descriptors, and the live lines.

Pure: samples in, text out. tests.soak.__main__ takes the samples when I/O flows again after a fault, so what a recovery
needs for a moment is not seen as growth. A role is one curve over all its incarnations: what a successor inherits from
its spawner (an open descriptor, touched pages) grows that curve too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

WINDOW: Final = 10  # samples at either end, of which the median counts: one odd sample decides nothing
SETTLED: Final = 5  # samples not looked at in the beginning: caches of allocator and imports fill at the first faults
# A role's PSS moves between 7 and 18 MiB without any leak (seen natively in 655 faults): after a spawner's death fewer
# processes share its pages. 2 KiB lost at each of an hour's faults (natively about 10000) is more than this.
MEMORY_GROWTH: Final = 16 << 20  # bytes
# A descriptor left at one fault in a thousand shows within an hour; sockets of peers come and go by fewer.
DESCRIPTORS_GROWTH: Final = 8


@dataclass(frozen=True)
class Sample:
    memory_bytes: int  # PSS
    descriptors: int


Curves = Mapping[str, Sequence[Sample]]  # by `side role`


def verdict(curves: Curves) -> list[str]:
    """What has grown past its bound, a line each. A curve too short to have two ends says nothing."""
    found = []
    for role, samples in sorted(curves.items()):
        settled = samples[SETTLED:]
        if len(settled) < 2 * WINDOW:
            continue
        first, last = settled[:WINDOW], settled[-WINDOW:]
        memory = median(s.memory_bytes for s in last) - median(s.memory_bytes for s in first)
        descriptors = median(s.descriptors for s in last) - median(s.descriptors for s in first)
        if memory > MEMORY_GROWTH:
            found.append(f"{role}: memory grew by {memory / (1 << 20):.1f} MiB (bound {MEMORY_GROWTH >> 20} MiB)")
        if descriptors > DESCRIPTORS_GROWTH:
            found.append(f"{role}: open descriptors grew by {descriptors:g} (bound {DESCRIPTORS_GROWTH})")
    return found


def judged(curves: Curves) -> bool:
    """Was the run long enough for a verdict about every role?"""
    return bool(curves) and all(len(samples) >= SETTLED + 2 * WINDOW for samples in curves.values())


def table(curves: Curves) -> str:
    """A line for each role: now, at the start, the largest."""
    lines = [f"{'':24} {'MiB PSS now/start/most':>24} {'descriptors now/start/most':>28}"]
    for role, samples in sorted(curves.items()):
        memory = [s.memory_bytes / (1 << 20) for s in samples]
        descriptors = [s.descriptors for s in samples]
        lines.append(
            f"{role:24} {f'{memory[-1]:.1f}/{memory[0]:.1f}/{max(memory):.1f}':>24} "
            f"{f'{descriptors[-1]}/{descriptors[0]}/{max(descriptors)}':>28}"
        )
    return "\n".join(lines)


def kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
