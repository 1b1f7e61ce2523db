"""Shell completion, in a real bash: commands, options, choices and the names of living roles."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tools
from bus.runtime import Runtime, Side
from common.wire import ExportRecord
from gadget.session.state import Device, State, save
from tools.cli.completion import script
from tools.cli.grammar import grammar
from tools.cli.side import bring_up, take_down
from tools.supervise.plan import Plan, RoleSpec

ROOT = Path(tools.__file__).parent.parent


@pytest.fixture
def side(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path_factory.mktemp("r")))
    runtime = Runtime(Side.HOST)
    spawner = bring_up(Plan(Side.HOST, "default", (RoleSpec("source.disk", "tests.unit.roles.steady"),)), runtime)
    yield
    take_down(runtime)
    spawner.wait(5.0)


def complete(line: str, cwd: Path = ROOT) -> set[str]:
    """What bash offers at the end of `line`."""
    words = line.split(" ")
    array = " ".join(f"'{word}'" for word in words)
    program = f'replug() {{ PYTHONPATH={ROOT} {sys.executable} -m tools.cli "$@"; }}\n{script(grammar())}\n'
    program += f'COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _replug; printf "%s\\n" "${{COMPREPLY[@]}}"'
    bash = shutil.which("bash") or "bash"
    done = subprocess.run([bash, "-c", program], cwd=cwd, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("replug sta", {"status"}),
        ("replug gadget ", {"up", "down", "--help"}),
        ("replug host s", {"serve"}),
        ("replug status --j", {"--json"}),
        ("replug status --side ", {"gadget", "host"}),
        ("replug status --side=gadget --w", {"--watch"}),
        ("replug gadget up --queue-depth ", set()),
        ("replug nonsense --xyz", set()),
    ],
)
def test_words_are_the_parsers(line: str, offered: set[str]) -> None:
    assert complete(line) == offered


def test_every_command_is_offered() -> None:
    offered = complete("replug ")
    assert {"gadget", "host", "status", "top", "restart", "drain", "kill", "log", "doctor", "config"} <= offered


def test_files_are_offered_where_files_are_meant(tmp_path: Path) -> None:
    (tmp_path / "rootfs.img").touch()
    assert complete("replug host serve roo", tmp_path) == {"rootfs.img"}
    assert complete("replug gadget up --config roo", tmp_path) == {"rootfs.img"}
    assert complete("replug status roo", tmp_path) == set()


@pytest.mark.parametrize("command", ["host remove", "host eject", "host remove other"])
def test_names_of_what_is_served_are_offered(side: None, command: str) -> None:
    assert complete(f"replug {command} di") == {"disk"}


@pytest.mark.parametrize("command", ["fail", "limit", "resume"])
def test_names_of_the_gadgets_exports_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("REPLUG_RUNTIME", str(tmp_path))
    assert complete(f"replug export {command} roo") == set(), "no side runs"
    runtime = Runtime(Side.GADGET)
    runtime.create()
    records = [ExportRecord(number, 512, 1 << 20) for number in (1, 2)]
    devices = (Device("00000001", records[0], 0, label="rootfs"), Device("00000002", records[1], 1))
    save(runtime.state_path(), State(5, devices))
    assert complete(f"replug export {command} roo") == {"rootfs"}
    assert complete(f"replug export {command} 0") == {"00000002"}, "one that no host has named has the gadget's name"


@pytest.mark.parametrize("command", ["restart", "drain", "kill", "log", "trace"])
def test_names_of_living_roles_are_offered(side: None, command: str) -> None:
    assert complete(f"replug {command} so") == {"source.disk"}
    assert "watchdog" in complete(f"replug {command} ")
