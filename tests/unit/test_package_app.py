"""The one-file application: built from this environment, run by a Python that has nothing but its standard library."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from tools.cli.side import take_down
from tools.package.app import build
from tools.supervise.launch import all_living
from tools.version import VERSION

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.base_prefix) / "bin/python3"


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("app"))


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    runtime = Runtime(Side.HOST, base=tmp_path_factory.mktemp("a"))
    yield runtime
    if runtime.root.exists():
        take_down(runtime)
    assert not all_living(runtime)


def run(application: Path, cache: Path, *words: str, base: Path | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", "REPLUG_CACHE_HOME": str(cache), "REPLUG_RUNTIME": str(base or cache)}
    return subprocess.run(
        [PYTHON, "-P", "-S", application, *words], env=environment, capture_output=True, text=True, timeout=60
    )


def test_it_tells_its_version_and_unpacks_once(application: Path, tmp_path: Path) -> None:
    for _ in range(2):
        told = run(application, tmp_path, "--version")
        assert (told.returncode, told.stdout) == (0, f"replug {VERSION}\n"), told.stderr
    assert len(list((tmp_path / "replug-app").iterdir())) == 1


def test_two_first_starts_at_once_both_go_well(application: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "REPLUG_CACHE_HOME": str(tmp_path)}
    command = [PYTHON, "-P", "-S", application, "--version"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list((tmp_path / "replug-app").iterdir())) == 1


def test_a_host_side_comes_up_from_it_and_goes_down(
    application: Path, tmp_path_factory: pytest.TempPathFactory, runtime: Runtime
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    (cache / "disk.img").write_bytes(bytes(4096))
    up = run(application, cache, "host", "serve", "--background", str(cache / "disk.img"), base=runtime.base)
    assert up.returncode == 0, up.stderr
    record = next(record for record in all_living(runtime) if record.role == "source.disk")
    maps = Path(f"/proc/{record.pid}/maps").read_text()
    assert str(cache) in maps and ".venv" not in maps
    assert run(application, cache, "status", base=runtime.base).stdout.count("source.disk") >= 1
    assert run(application, cache, "host", "down", base=runtime.base).returncode == 0


def test_another_python_or_machine_is_told_which_it_wants(application: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pyz"
    other.write_bytes(application.read_bytes())
    with zipfile.ZipFile(other, "a") as archive:
        archive.comment = b"cp39-riscv64-0"
    told = run(other, tmp_path, "--version")
    assert told.returncode == 4
    assert told.stderr.startswith("replug: this application is for cp39 on riscv64, here are cp3")


def test_a_cache_that_others_may_write_to_is_refused(application: Path, tmp_path: Path) -> None:
    (tmp_path / "replug-app").mkdir()
    (tmp_path / "replug-app").chmod(0o777)
    told = run(application, tmp_path, "--version")
    assert told.returncode == 2 and "others may write to it" in told.stderr


def test_the_same_files_give_the_same_bytes(application: Path, tmp_path: Path) -> None:
    assert build(ROOT, tmp_path).read_bytes() == application.read_bytes()
    assert os.access(application, os.X_OK)
