"""The Debian package: built, unpacked, and run with Debian 12's own Python packages, without our environment."""

import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side
from tools.cli.side import take_down
from tools.package.deb import DEPENDS, build
from tools.package.tree import installed
from tools.supervise.launch import all_living
from tools.version import VERSION

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".setup/debian"
LIBRARIES = f"usr/lib/{platform.machine()}-linux-gnu"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    stage = package.parent / "root"
    subprocess.run(["dpkg-deb", "-x", package, stage], check=True, timeout=60)
    return stage


class Installation:
    """The unpacked package in front of an environment that holds nothing but Debian's packages."""

    def __init__(self, stage: Path, base: Path) -> None:
        subprocess.run([ROOT / "tools/package/debian.sh", DEBIAN], check=True, timeout=300)
        self.stage, self.runtime = stage, Runtime(Side.HOST, base=base)
        root = DEBIAN / "root"
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(root / "usr/lib/python3/dist-packages"),
            "LD_LIBRARY_PATH": str(root / LIBRARIES),
            "REPLUG_RUNTIME": str(base),
        }

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [self.stage / "usr/bin/replug", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def installation(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    if not Path("/usr/bin/python3.11").exists() or not Path("/usr/bin/apt-get").exists():
        pytest.skip("this machine is no Debian 12: it has not the Python that these packages are for")
    here = Installation(unpacked, tmp_path_factory.mktemp("d"))
    yield here
    if here.runtime.root.exists():
        take_down(here.runtime)
    assert not all_living(here.runtime)


def test_the_package_tells_its_version_and_needs_only_debians_packages(package: Path) -> None:
    fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True, text=True, timeout=60).stdout
    assert f"\nVersion: {VERSION}\n" in fields
    assert f"\nDepends: {', '.join(DEPENDS)}\n" in fields
    assert "\nArchitecture: all\n" in fields


def test_the_version_is_the_projects() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


@pytest.mark.parametrize(
    "path",
    [
        "usr/bin/replug",
        "usr/lib/replug/tools/supervise/spawner.py",
        "usr/lib/systemd/system/replug-gadget.service",
        "usr/lib/systemd/system/replug-host@.service",
        "usr/lib/udev/rules.d/70-replug.rules",
        "usr/lib/udev/rules.d/71-replug-gadget.rules",
        "usr/share/bash-completion/completions/replug",
        "usr/share/man/man1/replug.1.gz",
        "usr/share/doc/replug/tutorial/first-disk.md",
    ],
)
def test_the_package_holds(path: str, unpacked: Path) -> None:
    assert (unpacked / path).stat().st_size


def test_nothing_of_the_tests_or_of_python_caches_is_in_it() -> None:
    paths = [file.path for file in installed(ROOT)]
    assert len(paths) == len(set(paths))
    assert not [path for path in paths if "__pycache__" in path or "/tests/" in path or path.endswith(".pyc")]


def test_the_same_tree_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    assert build(ROOT, tmp_path).read_bytes() == package.read_bytes()


def test_every_shell_script_of_it_parses(package: Path, unpacked: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-e", package, tmp_path], check=True, timeout=60)
    scripts = [tmp_path / "postinst", tmp_path / "prerm", *(ROOT / "packaging/openrc").iterdir()]
    scripts += [*unpacked.rglob("*.sh"), unpacked / "usr/share/bash-completion/completions/replug"]
    for script in scripts:
        shell = "bash" if b"bash" in script.read_bytes()[:40] else "sh"
        subprocess.run([shell, "-n", script], check=True, timeout=20)


def test_the_modules_are_debians_and_not_ours(installation: Installation) -> None:
    program = "import zmq, msgpack, psutil, usb, rich; print(zmq.__version__, msgpack.version, psutil.__version__)"
    result = subprocess.run(
        ["/usr/bin/python3.11", "-c", program], env=installation.environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.split() == ["24.0.1", "(1,", "0,", "3)", "5.9.4"], result.stderr


def test_it_tells_its_version(installation: Installation) -> None:
    result = installation.run("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"replug {VERSION}\n", "")


def test_doctor_runs_and_misses_no_python_package(installation: Installation) -> None:
    result = installation.run("doctor", "--json")
    document = json.loads(result.stdout)
    assert document["version"] == 1
    assert "pip" not in result.stdout


def test_a_host_side_comes_up_is_seen_and_goes_down(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    up = installation.run("host", "serve", "--background", str(tmp_path / "disk.img"))
    assert up.returncode == 0, up.stderr
    record = next(r for r in all_living(installation.runtime) if r.role == "source.disk")
    maps = Path(f"/proc/{record.pid}/maps").read_text()
    assert ".venv" not in maps and str(DEBIAN) in maps
    status = installation.run("status", "--json")
    assert json.loads(status.stdout)["exports"][0]["name"] == "disk", status.stderr
    text = installation.run("status")
    assert "source.disk" in text.stdout, text.stderr
    down = installation.run("host", "down")
    assert down.returncode == 0, down.stderr
    assert not installation.runtime.root.exists()


def test_the_units_name_commands_that_are_ours() -> None:
    from tools.cli.grammar import grammar

    lines = [line for unit in (ROOT / "packaging/systemd").iterdir() for line in unit.read_text().splitlines()]
    commands = [line.partition("=")[2].split() for line in lines if line.startswith(("ExecStart=", "ExecStop="))]
    assert len(commands) == 8
    for command in commands:
        assert command[0] == "/usr/bin/replug"
        grammar().parse_args(command[1:])


def test_the_program_is_executable_and_the_units_are_not(unpacked: Path) -> None:
    assert os.access(unpacked / "usr/bin/replug", os.X_OK)
    assert not (unpacked / "usr/lib/systemd/system/replug-host.service").stat().st_mode & 0o111
