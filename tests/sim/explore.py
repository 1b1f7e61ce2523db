"""Every kill point of the small workload, alone and in pairs: `make explore`. Nothing is sampled.

One run of tests.sim.steady goes from place to place: before each effect of a process, before and after each of its
steps. At each, one branch has the process that was about to act killed there (tests.sim.branches); it goes on to its
end, is judged as every run of the simulator is, and has all its later places for a second kill. A state that another
branch has been in (tests.sim.state) is not gone through again.

The environment: KILLS (2) in one run at most; JOBS branches at a time; OUT the file of results, which a later call goes
on with; SHARE=0/4 only each fourth first place; WHO=any: not only who is about to act dies, but each process before
each event of the whole; SLOW=WRITE: the first write at each source takes 0.2 s (or READ, FLUSH, DISCARD); V0=1: the old
wire; FAULT=no_fence: with that deliberate fault of tests.sim.mutations. AT=57.1,203 runs that branch alone and prints
its last events (TAIL=300: more).
"""

import gc
import hashlib
import json
import os
import sys
import time
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from tests.sim.branches import Branches, Plan, Replay, Seen
from tests.sim.mutations import MUTATIONS
from tests.sim.run import Run
from tests.sim.state import digest
from tests.sim.steady import SteadyRun
from tests.sim.world import Violation

WELL, EQUAL = "well", "equal"
_ROOT = Path(__file__).parents[2]


def product() -> str:
    """What was explored: results of other sources do not count. Whatever a run is made of lies in these folders."""
    together = hashlib.sha256()
    for folder in ("bus", "common", "gadget", "host", "tests/sim"):
        for path in sorted(_ROOT.joinpath(folder).rglob("*.py")):
            together.update(path.read_bytes())
    return together.hexdigest()


class Results:
    """A line for each branch that has ended, and one for each first place of which all branches have."""

    def __init__(self, path: Path, of: str) -> None:
        """An earlier call on the same sources (`of`) counts, but for places to whose end it had not come."""
        self.path, self.of = path, of
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if lines and lines[0] != {"of": of}:
            print(f"{path} is of other sources: all is explored anew")
            lines = []
        self.done = frozenset(line["done"] for line in lines if "done" in line)
        kept = [line for line in lines if line.get("done", line.get("first")) in self.done]
        path.write_text("".join(json.dumps(line) + "\n" for line in ({"of": of}, *kept)))
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def add(self, **line: object) -> None:
        """One write: lines of several processes do not mix."""
        os.write(self._fd, (json.dumps(line) + "\n").encode())

    def lines(self) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.path.read_text().splitlines()) if "path" in line]


def judged(run: Run) -> str:
    """To its end: WELL, or what is wrong."""
    try:
        run.execute()
    except Violation as violation:
        return str(violation)
    except Exception:  # of a model: that is told with its path as well
        return traceback.format_exc()
    return WELL


def explore(plan: Plan, results: Results) -> int:
    """All branches of `plan` into `results`. Returns how many places the run without a kill has."""
    seen = Seen()

    def joined(run: SteadyRun, kills_left: int) -> bool:
        return seen.note(digest(run), kills_left)

    def leaf(end: str) -> NoReturn:
        killed = [f"{kill.who} before {kill.what}" for kill in branches.kills]
        results.add(first=branches.kills[0].place, path=branches.path, killed=killed, end=end)
        os._exit(0)

    def failed(place: int, status: int) -> None:
        results.add(first=place, path=f"{branches.path}: after place {place}", killed=[], end=f"ended with {status:#x}")

    branches = Branches(plan, joined, leaf)
    branches.failed = failed
    branches.explored = lambda place: results.add(done=place)
    gc.collect()
    gc.freeze()
    gc.disable()  # what is not collected is not copied either, and a branch is short
    run = branches.run = SteadyRun(branches, plan.slow, plan.v0)
    end = judged(run)
    if branches.kills:
        leaf(end)
    branches.wait_for_all()
    if end != WELL:
        raise Violation(f"without any kill: {end}")
    return branches.count


def report(results: Results, places: int, took_s: float) -> int:
    """What has been explored, in this call and earlier ones. Returns how many branches failed."""
    lines = results.lines()
    failures = [line for line in lines if _kind(line) == "failed"]
    for line in failures[:20]:
        print(f"\n{line['path']} ({', then '.join(line['killed'])}): {line['end']}")
        print(f"again: make explore AT={line['path']}, with the same WHO, SLOW and V0")
    ends = Counter((len(line["killed"]), _kind(line)) for line in lines)
    for kills in sorted({kills for kills, _ in ends}):
        branches = {kind: ends[kills, kind] for kind in (WELL, EQUAL, "failed")}
        told = ", ".join(f"{n} {kind}" for kind, n in branches.items())
        print(f"{kills} killed: {sum(branches.values())} branches, {told}")
    last = Counter(line["killed"][-1].split(" before ")[0] for line in lines if line["killed"])
    print("killed last: " + ", ".join(f"{n} {who}" for who, n in last.most_common()))
    print(
        f"{len(results.done)} of {places} first places explored to their end; this call took {took_s:.1f} s", flush=True
    )
    return len(failures)


def _kind(line: dict[str, Any]) -> str:
    return line["end"] if line["end"] in (WELL, EQUAL) else "failed"


def again(path: str, anybody: bool, slow: str, v0: bool) -> int:
    """One branch, with its trace."""
    replay = Replay(path, anybody)
    run = replay.run = SteadyRun(replay, slow, v0)
    end = judged(run)
    print(run.world.tail(int(os.environ.get("TAIL") or 60)))
    print(f"{replay.path}: {end}")
    return 0 if end == WELL else 1


def main() -> int:
    names = ("KILLS", "JOBS", "OUT", "SHARE", "WHO", "AT", "FAULT", "SLOW", "V0")
    said = {name: os.environ[name] for name in names if os.environ.get(name)}
    with next((fault() for fault in MUTATIONS if fault.__name__ == said.get("FAULT")), nullcontext()):
        return _as(said)


def _as(said: dict[str, str]) -> int:
    anybody = said.get("WHO") == "any"
    if "AT" in said:
        return again(said["AT"], anybody, said.get("SLOW", ""), "V0" in said)
    results = Results(Path(said.get("OUT", "explore.jsonl")), product())
    share, of = map(int, said.get("SHARE", "0/1").split("/"))
    plan = Plan(
        int(said.get("KILLS", 2)),
        int(said.get("JOBS", 1)),
        anybody,
        lambda place: place not in results.done and place % of == share,
        said.get("SLOW", ""),
        "V0" in said,
    )
    began = time.monotonic()
    places = explore(plan, results)
    return 1 if report(Results(results.path, results.of), places, time.monotonic() - began) else 0


if __name__ == "__main__":
    sys.exit(main())
