"""What must hold of a side whatever its peer sends: nobody else dies, memory stays, each refusal is counted and logged.

And the accidents that good bytes have, by a seed that every test prints.
"""

import json
import os
import random
from dataclasses import dataclass
from typing import Any

from bus.control import ask
from bus.runtime import Runtime
from common import limits
from tests.e2e.v0_host import await_event
from tools.supervise.launch import all_living

SEED = int(os.environ.get("REPLUG_SEED", "20261123"))
GROWN_BYTES = 6 << 20  # what a role may have grown by: one frame or payload kept for each message would be far more


def dice(what: str) -> random.Random:
    """Seeded; pytest shows the line when the test fails."""
    print(f"{what}: REPLUG_SEED={SEED}")
    return random.Random(f"{SEED} {what}")


def hurt(rng: random.Random, good: bytes, head_bytes: int = 1 << 16) -> bytes:
    """`good` after one to three accidents: cut, grown, or with other bits in its first `head_bytes`. Never `good`."""
    while True:
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            match rng.randrange(4):
                case 0:
                    del data[rng.randint(0, len(data)) :]
                case 1:
                    at = rng.randint(0, len(data))
                    data[at:at] = rng.randbytes(rng.randint(1, 64))
                case _ if data:
                    data[rng.randrange(min(head_bytes, len(data)))] ^= 1 << rng.randrange(8)
        if data != good:
            return bytes(data)


@dataclass(frozen=True)
class Process:
    pid: int
    rss_bytes: int


class Watch:
    """A side from now on."""

    def __init__(self, runtime: Runtime, *asked: str) -> None:
        """`asked`: the roles that have to do with the peer, and count what they refuse."""
        self._runtime, self._asked = runtime, asked
        self._before = self._processes()
        self._refused = self._counts()
        self._lines = len(self.logged())

    def _processes(self) -> dict[str, Process]:
        return {r.role: Process(r.pid, _rss_bytes(r.pid)) for r in all_living(self._runtime)}

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for role in self._asked:
            answer: dict[str, Any] = ask(self._runtime, role, "status")
            counts |= {f"{role} {kind}": count for kind, count in answer["refusals"].items()}
        return counts

    def refused(self) -> dict[str, int]:
        """What was refused since, by role and kind."""
        now = self._counts()
        return {
            kind: count - self._refused.get(kind, 0) for kind, count in now.items() if count != self._refused.get(kind)
        }

    def logged(self) -> list[str]:
        """The lines about refusals that the log has, of all incarnations."""
        found = []
        for role in self._asked:
            for line in self._runtime.log_path(role).read_text().splitlines():
                record = json.loads(line)
                if record["text"].startswith("refused: "):
                    found.append(str(record["text"]))
        return found

    def newly_logged(self, within_s: float) -> list[str]:
        """Lines since; never more than a flood may have in this time."""
        lines = self.logged()[self._lines :]
        kinds = max(1, len(self.refused()))
        most = limits.REFUSALS_LOGGED * (2 + within_s / limits.REFUSALS_WITHIN_S) * kinds
        assert len(lines) <= most, f"{len(lines)} lines about refusals in {within_s:.1f} s"
        return lines

    def unharmed(self, replaced: str = "") -> None:
        """Every process is the one it was (but for `replaced`), and none has grown."""
        await_event("all roles", lambda: self._processes().keys() == self._before.keys())
        for role, now in self._processes().items():
            before = self._before[role]
            assert (now.pid == before.pid) is (role != replaced), f"{role}: pid {before.pid} is now {now.pid}"
            assert now.rss_bytes <= before.rss_bytes + GROWN_BYTES, f"{role}: {before} became {now}"


def _rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")
