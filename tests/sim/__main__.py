"""`make sim`: runs seeds, and says what they did. A failure prints how to run it again. The environment says which:

SEED the first one (otherwise a new one), N so many, SECONDS for so long (of all processes together), JOBS processes,
FAULTS in each seed; WITH what a run has beyond the first faults (tests.sim.setting; `none`; else drawn); COUNTS=1
prints all that was counted, TAIL so many lines of a failure's trace. Without N and SECONDS it goes on until a seed
fails.
"""

import os
import sys
import time
from collections import Counter

from tests.sim import setting
from tests.sim.campaign import Outcome, Plan, outcomes
from tests.sim.run import FAULTS

SAY_S = 10.0


class Report:
    """What the seeds so far have shown."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._began = self._said = time.monotonic()
        self._done = 0
        self._counts: Counter[str] = Counter()
        self.failed: list[int] = []

    def take(self, outcome: Outcome) -> None:
        self._done += 1
        self._counts += outcome.counts
        if outcome.violation:
            self.failed.append(outcome.seed)
            print(f"\nseed {outcome.seed} (step {outcome.steps}): {outcome.violation}")
            if self._plan.endless or self._plan.seeds == 1:
                print("\n".join(outcome.trace.splitlines()[-int(os.environ.get("TAIL") or 60) :]))
            faults = f" FAULTS={self._plan.faults}" if self._plan.faults != FAULTS else ""
            print(f"again: make sim SEED={outcome.seed} N=1 WITH={outcome.setting}{faults}", flush=True)
        if time.monotonic() - self._said > SAY_S:
            self._said = time.monotonic()
            self.say()

    def say(self) -> None:
        took = time.monotonic() - self._began
        faults = sum(self._faults().values())
        print(
            f"{self._done} seeds, {faults} faults, {len(self.failed)} failed, {took:.1f} s: "
            f"{self._done / took:.1f} seeds and {faults / took:.0f} faults a second",
            flush=True,
        )

    def _faults(self) -> Counter[str]:
        kinds = {name.removeprefix("fault "): n for name, n in self._counts.items() if name.startswith("fault ")}
        return Counter(kinds)

    def end(self) -> None:
        self.say()
        print("faults: " + ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in self._faults().most_common()))
        if os.environ.get("COUNTS"):
            for name, n in sorted(self._counts.items()):
                print(f"  {name}: {n}")


def main() -> int:
    said = {name: int(os.environ[name]) for name in ("SEED", "N", "SECONDS", "JOBS", "FAULTS") if os.environ.get(name)}
    plan = Plan(
        said.get("SEED", time.time_ns() % 1_000_000),
        said.get("N"),
        said.get("SECONDS"),
        said.get("JOBS", 1),
        said.get("FAULTS", FAULTS),
        setting.said(os.environ["WITH"]) if os.environ.get("WITH") else None,
    )
    print(f"seeds from {plan.first} on, {plan.faults} faults each, in {plan.jobs} processes", flush=True)
    report = Report(plan)
    results = outcomes(plan)
    try:
        for outcome in results:
            report.take(outcome)
            if report.failed and plan.endless:
                break
    except KeyboardInterrupt:
        print()
    finally:
        results.close()  # type: ignore[attr-defined]
    report.end()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
