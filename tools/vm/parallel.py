"""A whole pytest in guests: split its files, run each share in a guest of its own, add the counts up.

One guest at a time for each core, because one virtual processor is faster than two for processes that talk to each
other. Each guest is a `python -m tools.vm run` of its own; its pytest leaves a junit file in a shared
directory. Also runs the same pytest without a guest on a machine that has dummy controllers itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.vm.counts import Counts, count, one_failure, read_durations
from tools.vm.images import Lacking
from tools.vm.panic import panic_of

DEFAULT_TESTS = "tests/e2e"
FIRST_DURATIONS = "tests/e2e/durations.json"
"""About how long each file takes, for a machine that has not run them: else one guest may get all that is slow."""
LANE_MARK = "REPLUG_E2E"
"""Environment variable that tells the tests where they are: `guest` or `direct`; unset elsewhere."""


GUEST_OPTIONS = (
    *("-p", "no:xdist", "-p", "no:xdist.looponfail"),
    *("-p", "no:hypothesispytest", "-p", "no:cacheprovider"),
)
"""Plugins of no use in a guest of its own; importing them costs 7 s there. Hypothesis itself still works."""

CONSOLE_LINES = 40
SHARES_PER_JOB = 2
"""A guest that dies takes all results of its share with it, so shares are smaller than they could be; a boot is 5 s."""

PYTEST_EXITS = (0, 1, 5)
"""All passed, some failed, none collected: a junit file tells these in full. Others are failures too."""


def separate(arguments: Sequence[str], here: Path) -> tuple[list[str], list[str]]:
    """What to test (files, directories and `file::test` that exist) and the options for every pytest."""
    tests = [one for one in arguments if not one.startswith("-") and (here / one.split("::", 1)[0]).exists()]
    return tests, [one for one in arguments if one not in tests]


def files_of(tests: Iterable[str], here: Path) -> list[str]:
    """Each test file below the given paths once, in order; a `file::test` stays as it is."""
    found: dict[str, None] = {}
    for test in tests:
        path = here / test
        if path.is_dir():
            found.update(dict.fromkeys(str(each) for each in sorted(path.rglob("test_*.py"))))
        else:
            found[str(path)] = None
    return list(found)


def split(files: Iterable[str], weights: Mapping[str, float], jobs: int) -> list[list[str]]:
    """At most *jobs* non-empty shares of about the same weight: the heaviest first, to the lightest share."""
    shares: list[list[str]] = [[] for _ in range(jobs)]
    loads = [0.0] * jobs
    for file in sorted(files, key=lambda one: (-weights.get(one, 1.0), one)):
        lightest = loads.index(min(loads))
        shares[lightest].append(file)
        loads[lightest] += weights.get(file, 1.0)
    return [share for share in shares if share]


def in_guests(
    arguments: Sequence[str], jobs: int, results: Path | None, machine: Sequence[str], cache: Path, root: Path
) -> Counts:
    """Run pytest with *arguments*, in *jobs* guests at a time; *machine* are options for each `vm run`."""
    tests, options = separate(arguments, Path.cwd())
    files = files_of(tests or [str(root / DEFAULT_TESTS)], Path.cwd())
    memory = cache / "durations.json"
    shares = split(files, weights(files, root, memory), jobs * SHARES_PER_JOB)
    with tempfile.TemporaryDirectory(prefix="replug-results-") as temporary:
        where = (results or Path(temporary)).absolute()
        where.mkdir(parents=True, exist_ok=True)
        lanes = [Lane(number, share, where) for number, share in enumerate(shares, start=1)]
        pool = ThreadPoolExecutor(jobs)
        try:
            counts = list(pool.map(lambda lane: lane.run(lane.command(options, machine), root), lanes))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for lane in lanes:
                lane.stop()
        _remember(memory, lanes)
    return sum(counts, Counts())


class Lane:
    """One guest of the run, as a child process whose output is passed on line by line."""

    _printing = threading.Lock()

    def __init__(self, number: int, files: Sequence[str], results: Path) -> None:
        self.number, self.files, self.results = number, files, results
        self.junit = results / f"junit-{number}.xml"
        self.console = results / f"console-{number}.txt"
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped, self._starting = False, threading.Lock()

    def command(self, options: Sequence[str], machine: Sequence[str]) -> list[str]:
        """What runs our files in a guest with that machine's options, and that pytest's."""
        command = [sys.executable, "-m", "tools.vm", "run", *machine, "--share", str(self.results)]
        command += ["--console", str(self.console)]
        command += ["--env", f"{LANE_MARK}=guest"]
        for directory in sorted({str(Path(file.split("::", 1)[0]).parent) for file in self.files}):
            command += ["--visible", directory]
        return [*command, "--", *pytest_command([*GUEST_OPTIONS, *options], self.junit, self.files)]

    def run(self, command: Sequence[str], root: Path) -> Counts:
        """From start to end."""
        self.start(command, root)
        return self.finish()

    def start(self, command: Sequence[str], root: Path) -> None:
        """Start the guest, unless all were stopped; its junit file appears when its pytest ends."""
        self.junit.unlink(missing_ok=True)
        self.console.unlink(missing_ok=True)
        with self._starting:
            if self._stopped:
                return
            self._child = subprocess.Popen(
                command, cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        self._reader = threading.Thread(target=self._pass_on, args=(self._child.stdout or (),), daemon=True)
        self._reader.start()

    def finish(self) -> Counts:
        """Wait for the end and read the counts; a guest that left none counts as one failure."""
        exit_code = self._wait()
        counts = count([self.junit])
        if not self.junit.exists():
            panic = panic_of(self.console.read_text(errors="replace")) if self.console.exists() else None
            why = f"its kernel died: {panic}" if panic else f"ended with exit status {exit_code}"
            self._failed(self.junit, f"no results: guest {self.number} {why}")
            self._tell_console()
        elif exit_code not in PYTEST_EXITS:
            self._failed(self.junit.with_suffix(".exit.xml"), f"guest {self.number} ended with exit status {exit_code}")
            counts += Counts(failed=1)
        return counts

    def _wait(self) -> int:
        if self._child is None:
            return 125  # stopped before it was begun
        exit_code = self._child.wait()
        self._reader.join()
        return exit_code

    def stop(self) -> None:
        """End the guest if it still runs; it takes its QEMU and its files with it."""
        with self._starting:
            self._stopped = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()

    def _pass_on(self, output: Iterable[bytes]) -> None:
        for line in output:
            self._print(line.decode(errors="replace").rstrip("\n"))

    def _failed(self, junit: Path, reason: str) -> None:
        self._print(reason)
        junit.write_text(one_failure(reason))

    def _tell_console(self) -> None:
        """Why a pytest was killed (out of memory, say) only the guest's kernel knows."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.console.read_text(errors="replace").splitlines()[-CONSOLE_LINES:]:
                self._print(line)

    def _print(self, line: str) -> None:
        with self._printing:
            print(f"[{self.number}] {line}", flush=True)


def pytest_command(options: Sequence[str], junit: Path, tests: Sequence[str]) -> list[str]:
    """One pytest, talkative unless told otherwise: a line for each test is what a live reader wants."""
    told = any(option.startswith(("-v", "-q")) for option in options)
    talk = [] if told else ["-v", "-ra"]
    return [sys.executable, "-m", "pytest", *talk, *options, f"--junitxml={junit}", *tests]


def directly(arguments: Sequence[str], root: Path) -> Counts:
    """The same pytest without a guest. Raises Lacking unless this machine has what the tests drive."""
    lacking = missing_here(Path("/"), os.geteuid())
    if lacking:
        raise Lacking(f"--direct: {lacking}: leave --direct out to run in a guest")
    tests, options = separate(arguments, Path.cwd())
    with tempfile.TemporaryDirectory(prefix="replug-results-") as temporary:
        junit = Path(temporary) / "junit.xml"
        command = pytest_command(options, junit, files_of(tests or [str(root / DEFAULT_TESTS)], Path.cwd()))
        done = subprocess.run(command, cwd=root, env={**os.environ, LANE_MARK: "direct"}, check=False)
        return count([junit]) + Counts(failed=int(junit.exists() and done.returncode not in PYTEST_EXITS))


def missing_here(root: Path, euid: int) -> str:
    """What this machine lacks for the tests, or nothing. Only dummy controllers count: never a real one."""
    if euid != 0:
        return "needs root"
    if not (root / "dev/ublk-control").exists():
        return "no /dev/ublk-control: 'modprobe ublk_drv'"
    if not list((root / "sys/class/udc").glob("dummy_udc.*")):
        return "no dummy USB device controller: 'modprobe dummy_hcd'"
    if not (root / "sys/kernel/config/usb_gadget").is_dir():
        return "no /sys/kernel/config/usb_gadget: 'modprobe libcomposite'"
    return ""


def _module_of(file: str, root: Path) -> str:
    path = Path(file.split("::", 1)[0])
    if not path.is_relative_to(root):
        return ""
    return str(path.relative_to(root)).removesuffix(".py").replace("/", ".")


def weights(files: Iterable[str], root: Path, memory: Path) -> dict[str, float]:
    """Seconds each file took the last time, or once elsewhere if it has not run here; 30 for one not seen at all."""
    known: dict[str, float] = {}
    for kept in (root / FIRST_DURATIONS, memory):
        with contextlib.suppress(FileNotFoundError, ValueError):
            known.update(json.loads(kept.read_text()))
    return {file: float(known.get(_module_of(file, root), 30.0)) for file in files}


def _remember(memory: Path, lanes: Iterable[Lane]) -> None:
    known: dict[str, float] = {}
    for lane in lanes:
        with contextlib.suppress(ElementTree.ParseError):
            known.update(read_durations(lane.junit.read_text()))
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = {**json.loads(memory.read_text()), **known}
    temporary = memory.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.replace(memory)
