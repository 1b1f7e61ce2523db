"""`make coverage`: runs tests with each line of ours noted, and says for each file which statements nobody ran.

TESTS names what pytest is given (otherwise all that `make unit` runs). Not in guests yet. The bounds:
every statement of the cores (tests/mutants/cores.py), and 90 of 100 of all others taken together.
"""

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cover.statements import missed
from tests.cover.tracer import PACKAGES, WHERE
from tests.mutants.cores import CORES

ROOT = Path(__file__).resolve().parents[2]
UNIT = "tests/unit tests/sim tests/chaos tests/fuzz"
REST_PERCENT = 90.0
# A .pth file's line that begins with `import` is executed by each start of Python, whatever else it is given.
_START = (
    "import os; os.environ.get({where!r}) and (__import__('sys').path.append({root!r}), "
    "__import__('tests.cover.tracer', fromlist=['start']).start())\n"
)


@contextmanager
def tracing(where: Path) -> Iterator[dict[str, str]]:
    """The environment for it. For its time every Python process of this environment looks for the variable."""
    hook = Path(sysconfig.get_paths()["purelib"]) / "replug_cover.pth"
    hook.write_text(_START.format(where=WHERE, root=str(ROOT)))
    try:
        yield {**os.environ, WHERE: str(where)}
    finally:
        hook.unlink()


def run(where: Path) -> int:
    with tracing(where) as environment:
        jobs = os.environ.get("JOBS") or str(os.cpu_count() or 1)
        tests = (os.environ.get("TESTS") or UNIT).split()
        command = [sys.executable, "-m", "pytest", "-q", "-n", jobs, "-p", "no:cacheprovider", "--timeout=300", *tests]
        return subprocess.run(command, env=environment, cwd=ROOT).returncode


def report(where: Path) -> int:
    """What was missed of each file; 1 if it is below a bound."""
    cores = {core.path for core in CORES}
    total = {True: [0, 0], False: [0, 0]}  # of cores and of the rest: statements, and how many of them did not run
    for path in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        seen = where / (name.replace("/", "+") + ".lines")
        count, lines = missed(path.read_text(), seen.read_bytes() if seen.exists() else b"")
        total[name in cores][0] += count
        total[name in cores][1] += len(lines)
        if lines:
            percent = 100 * (count - len(lines)) / count
            print(f"{name:40} {percent:5.1f} %  {'core  ' if name in cores else ''}{_shown(lines)}")
    (core_count, core_missed), (count, rest_missed) = total[True], total[False]
    rest = 100 * (count - rest_missed) / count
    print(f"cores: {core_missed} of {core_count} statements not run; the rest: {rest:.1f} % of {count} run")
    return 1 if core_missed or rest < REST_PERCENT else 0


def _shown(lines: list[int]) -> str:
    return ", ".join(map(str, lines[:20])) + (f", and {len(lines) - 20} more" if len(lines) > 20 else "")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # the hook must not stay
    with tempfile.TemporaryDirectory(prefix="replug-cover-", dir="/dev/shm") as directory:
        os.chmod(directory, 0o777)  # a process that gave up its rights marks its lines, too
        tests = run(Path(directory))
        return report(Path(directory)) or tests


if __name__ == "__main__":
    sys.exit(main())
