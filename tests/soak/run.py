"""Faults drawn from a seed until the time is over or somebody stops it, with samples of every role."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from bus.runtime import Side
from tests.chaos.__main__ import Planned, Run
from tests.chaos.events import Key, cable, kind_of
from tests.chaos.scenario import draw
from tests.chaos.stages import At
from tests.soak.curves import Sample, kinds
from tools.demo import inside

SAMPLE_EVERY = 10  # faults
REPORT_S = 10.0
_NOT_STRUCK = ("twin",)


class Soak(Run):
    """A Run without a plan's end. `stopping` is asked between two faults."""

    duration_s = 0.0
    stopping: Callable[[], bool] = staticmethod(lambda: False)

    def strike_all(self, devices: list[Path], chosen: Callable[[list[Key]], Planned] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.curves: defaultdict[str, list[Sample]] = defaultdict(list)
        self.longest_s = 0.0
        self._loads = self._load(devices, self._seed)
        roles = sorted(key for key in inside.pids() if kind_of(key[1]) not in _NOT_STRUCK)
        choose, end, told = random.Random(self._seed), time.monotonic() + self.duration_s, 0.0
        self.sample()
        while time.monotonic() < end and not self.stopping():
            self.step += 1
            events = draw(choose, roles, cable[0].sleeps)
            pause_s = self._strike(events)
            self.longest_s = max(self.longest_s, pause_s)
            self.counts.update(_kind(event) for event in events)
            self.results.add("two at once" if len(events) > 1 else str(events[0]), "", pause_s)
            if self.step % SAMPLE_EVERY == 0:
                self.sample()
            if time.monotonic() - told > REPORT_S:
                told = time.monotonic()
                print(self.line(end - told), flush=True)
        self.sample()
        for load in self._loads:
            load.stop(self._limit_s)

    def line(self, left_s: float) -> str:
        checked = sum(load.bytes_checked for load in self._loads) >> 20
        memory = ", ".join(f"{side} {self._of_side(side)}" for side in Side)
        return (
            f"{self.step} faults ({kinds(self.counts)}); {checked} MiB verified; longest pause "
            f"{self.longest_s * 1000:.0f} ms; now/start/most {memory}; {max(0.0, left_s) / 60:.0f} min left"
        )

    def sample(self) -> None:
        for (side, role), pid in inside.pids().items():
            try:
                found = Sample(_pss(pid), len(list(Path(f"/proc/{pid}/fd").iterdir())))
            except (OSError, StopIteration):
                continue  # died between the look and now: its successor is sampled next time
            self.curves[f"{side} {role}"].append(found)

    def _of_side(self, side: Side) -> str:
        ours = [samples for role, samples in self.curves.items() if role.split()[0] == str(side)]
        memory = [sum(pick(samples) for samples in ours) >> 20 for pick in (_now, _start, _most)]
        descriptors = [sum(pick(samples) for samples in ours) for pick in (_fds_now, _fds_start, _fds_most)]
        return f"{'/'.join(map(str, memory))} MiB PSS, {'/'.join(map(str, descriptors))} descriptors"


def _now(samples: list[Sample]) -> int:
    return samples[-1].memory_bytes


def _start(samples: list[Sample]) -> int:
    return samples[0].memory_bytes


def _most(samples: list[Sample]) -> int:
    return max(sample.memory_bytes for sample in samples)


def _fds_now(samples: list[Sample]) -> int:
    return samples[-1].descriptors


def _fds_start(samples: list[Sample]) -> int:
    return samples[0].descriptors


def _fds_most(samples: list[Sample]) -> int:
    return max(sample.descriptors for sample in samples)


def _kind(event: object) -> str:
    return "kill at a point" if isinstance(event, At) else type(event).__name__.lower()


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
