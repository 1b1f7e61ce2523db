"""`make mutants`: generated faults in the cores, each in a forked process: does a unit test notice, or the simulator?

ONLY names modules (`ONLY=host.usb.core`), JOBS processes, SEEDS of the simulator for each that unit tests miss. Results
are kept in .setup/results/mutants.jsonl as long as the module and its tests are what they were, so it goes on where it
was ended. A survivor that tests/mutants/survivors.toml does not list with a reason is a failure, and so is a reason
for a mutant that is not a survivor (any more).
"""

import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.mutants.cores import CORES, Core
from tests.mutants.generate import TABLE, Mutant, of_source, of_table
from tests.mutants.install import install

TESTS = Path("tests")
SURVIVORS = TESTS / "mutants" / "survivors.toml"
RESULTS = Path(".setup/results/mutants.jsonl")
CPU_S = 60  # of one child: a mutant that runs for ever is killed by it, and was noticed
EXAMPLES = 15  # of each property test, always the same ones
UNIT, SIM, SURVIVED = "unit", "sim", "survived"


def mutants_of(core: Core) -> list[Mutant]:
    module = importlib.import_module(core.module)
    source = Path(core.path).read_text()
    # Comparisons at the level of the module make tables, whose entries have mutants of their own.
    found = [m for m in of_source(source) if not m.name.startswith("module: ")]
    if f"\n{TABLE}: dict" in source:
        found += of_table(getattr(module, TABLE), source)
    return found


def fingerprint(core: Core) -> str:
    files = [core.path, *(str(TESTS / test) for test in core.tests)]
    return hashlib.sha256(b"\0".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


# -- in the children -------------------------------------------------------------------------------------------------
def run_units(core: Core) -> int:
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return int(pytest.main([*options, *(str(TESTS / test) for test in core.tests)]))


def run_seeds(seeds: int) -> int:
    from tests.sim.run import Run

    for seed in range(seeds):
        Run(seed).execute()
    return 0


def child(work: Callable[[], int]) -> int:
    """Fork, and do it there. Nothing is said: only whether it went well counts."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        status = work()
    finally:
        os._exit(status)


class Hunt:
    """Up to `jobs` children at a time; a mutant that its unit tests miss comes again, for the simulator."""

    def __init__(self, jobs: int, seeds: int) -> None:
        self._jobs, self._seeds = jobs, seeds
        self._running: dict[int, tuple[Core, Mutant, str]] = {}
        self.verdicts: dict[tuple[str, str], str] = {}
        self._known = self._read()

    @staticmethod
    def _read() -> dict[tuple[str, str, str], str]:
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        entries = [json.loads(line) for line in lines]
        return {(e["module"], e["name"], e["of"]): e["verdict"] for e in entries}

    def over(self, cores: list[Core]) -> None:
        todo = self._todo(cores)
        while todo or self._running:
            while todo and len(self._running) < self._jobs:
                self._start(*todo.pop(0), UNIT)
            self._reap()

    def _todo(self, cores: list[Core]) -> list[tuple[Core, Mutant]]:
        todo = []
        for core in cores:
            for mutant in mutants_of(core):
                known = self._known.get((core.module, mutant.name, fingerprint(core)))
                if known is None:
                    todo.append((core, mutant))
                else:
                    self.verdicts[core.module, mutant.name] = known
        print(f"{len(todo)} mutants to try, {len(self.verdicts)} known from before", flush=True)
        return todo

    def _start(self, core: Core, mutant: Mutant, stage: str) -> None:
        def work() -> int:
            install(sys.modules[core.module], mutant)
            return run_units(core) if stage == UNIT else run_seeds(self._seeds)

        self._running[child(work)] = (core, mutant, stage)

    def _reap(self) -> None:
        pid, status = os.wait()
        core, mutant, stage = self._running.pop(pid)
        if status != 0:
            self._judge(core, mutant, stage)
        elif stage == UNIT and core.simulated:
            self._start(core, mutant, SIM)
        else:
            self._judge(core, mutant, SURVIVED)

    def _judge(self, core: Core, mutant: Mutant, verdict: str) -> None:
        self.verdicts[core.module, mutant.name] = verdict
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        entry = {"module": core.module, "name": mutant.name, "of": fingerprint(core), "verdict": verdict}
        with RESULTS.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if verdict == SURVIVED:
            print(f"survived: {core.module}: {mutant.name}", flush=True)


def sound(cores: list[Core], seeds: int) -> Iterator[str]:
    """What fails without any mutant: then nothing could be shown."""
    for core in cores:
        _, status = os.waitpid(child(lambda core=core: run_units(core)), 0)  # type: ignore[misc]
        if status:
            yield f"{core.module}: its tests fail as it is"
    if any(core.simulated for core in cores):
        _, status = os.waitpid(child(lambda: run_seeds(seeds)), 0)
        if status:
            yield "the simulator's seeds fail as it is"


def judge(cores: list[Core], verdicts: dict[tuple[str, str], str]) -> int:
    """The table, and what the reviewed list does not say or says wrongly."""
    listed = tomllib.loads(SURVIVORS.read_text())
    wrong = []
    for core in cores:
        mine = {name: verdict for (module, name), verdict in verdicts.items() if module == core.module}
        count = Counter(mine.values())
        print(
            f"{core.module:24} {len(mine):4} mutants: "
            f"{count[UNIT]} by unit, {count[SIM]} by sim, {count[SURVIVED]} survived"
        )
        reasons = listed.get(core.module, {})
        wrong += [
            f"{core.module}: {name}: survives, and is not in {SURVIVORS}"
            for name, verdict in mine.items()
            if verdict == SURVIVED and name not in reasons
        ]
        wrong += [
            f"{core.module}: {name}: listed, but {mine.get(name, 'is no mutant of it')}"
            for name in reasons
            if mine.get(name) != SURVIVED
        ]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def main() -> int:
    only = os.environ.get("ONLY", "").split()
    cores = [core for core in CORES if not only or core.module in only]
    seeds = int(os.environ.get("SEEDS") or 8)
    settings.register_profile("mutants", derandomize=True, database=None, max_examples=EXAMPLES, deadline=None)
    settings.load_profile("mutants")  # before the tests are imported: it is their decorators that read it
    began = time.monotonic()
    for core in cores:  # once, for all children
        importlib.import_module(core.module)
        for test in core.tests:
            importlib.import_module(f"tests.{test.removesuffix('.py').replace('/', '.')}")
    importlib.import_module("tests.sim.run")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if faults := list(sound(cores, seeds)):
        print("\n".join(faults))
        return 2
    hunt = Hunt(int(os.environ.get("JOBS") or os.cpu_count() or 1), seeds)
    hunt.over(cores)
    status = judge(cores, hunt.verdicts)
    print(f"{len(hunt.verdicts)} mutants, {time.monotonic() - began:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
