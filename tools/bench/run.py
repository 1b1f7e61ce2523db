"""The whole of a run: each system comes up, is loaded, goes away; then the next, and all of it once more each round.

One after the other and not side by side: a system that only waits has transfers queued, which a dummy controller's
timer pays for. Called by tools.bench.main.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import Refused
from tools.bench import exports, fio, hops, link, messages
from tools.bench.block import block
from tools.bench.core import ALL_LOADS, LONE_READ, RATIO_LOADS, Figure, Step
from tools.bench.mass_storage import mass_storage
from tools.bench.system import System
from tools.bench.whole import INSTANCE, whole

SYSTEMS: dict[str, System] = {"block": block, "whole": whole, "mass_storage": mass_storage}
"""What is loaded by fio. Another system hangs here."""

_PROFILE_S = 1.5
NAMES = ("bus", "link", *SYSTEMS, "exports")


@dataclass(frozen=True)
class Wish:
    """`quick`: only what the ratios are made of."""

    systems: Sequence[str] = NAMES
    quick: bool = True
    seconds: float = 3.0
    rounds: int = 1
    profile: bool = False


@dataclass
class Run:
    """What was measured, and which systems could not be had."""

    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def run(wish: Wish, tell: Callable[[str], None]) -> Run:
    """Measure; `tell` hears each figure as it comes."""
    done = Run()
    if set(wish.systems) - {"bus", "link"}:
        fio.require()
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/dev/shm") as place:
        for _ in range(wish.rounds):
            for name in wish.systems:
                try:
                    for figure in _measure(name, wish, Path(place)):
                        done.figures.append(figure)
                        tell(f"{figure.system}: {figure.load}: {figure.iops:.0f}/s, {figure.bytes_s / 1e6:.1f} MB/s")
                except Refused as error:
                    done.left_out[name] = str(error)
                    tell(f"{name}: left out: {error}")
        if wish.profile:
            done.steps = _profile(Path(place))
    return done


def _profile(place: Path) -> list[Step]:
    """A lone read through the whole, with the trace points of its roles recorded."""
    with whole(place) as ready:
        roles = list(ready.processes())
        hops.record(INSTANCE, roles, on=True)
        fio.run("whole", ready.device, LONE_READ, _PROFILE_S, dict)
        return hops.steps(hops.record(INSTANCE, roles, on=False))


def _measure(name: str, wish: Wish, place: Path) -> Iterator[Figure]:
    if name == "bus":
        yield from messages.measure(place, wish.seconds)
    elif name == "exports":
        yield from exports.measure(place, wish.seconds)
    elif name == "link":
        yield from link.measure(place, wish.seconds, wish.quick)
    else:
        with SYSTEMS[name](place) as ready:
            for load in RATIO_LOADS if wish.quick else ALL_LOADS:
                yield fio.run(name, ready.device, load, wish.seconds, ready.processes)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "model": models[0] if models else "",
        "memory_mib": int(memory) >> 10,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
