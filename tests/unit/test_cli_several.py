"""One `host serve` for several gadgets: a side for each, all or none, told apart, and ended together."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common.errors import Exit
from tools.cli import main
from tools.cli.side import take_down
from tools.supervise.launch import all_living

ROOT = Path(__file__).parents[2]
CONFIG = """
[host.one]
source = "{0}/one.img"
gadget = "S1"
[host.two]
source = "{0}/two.img"
gadget = "port:1-2"
"""


class Farm:
    """A configuration of two host sides, and commands about them."""

    def __init__(self, work: Path) -> None:
        self.work, self.config = work, work / "replug.toml"
        self.sides = [Runtime(Side.HOST, name, work / "r") for name in ("one", "two")]
        self.config.write_text(CONFIG.format(work))
        for name in ("one", "two"):
            (work / f"{name}.img").write_bytes(bytes(4096))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tools.cli", *words, "--config", str(self.config)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "REPLUG_RUNTIME": str(self.work / "r")}

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("f"))
    yield farm
    for side in farm.sides:
        if side.root.exists():
            take_down(side)
        assert not all_living(side)


def test_each_gadget_has_a_side_of_its_own_and_ctrl_c_ends_all(farm: Farm) -> None:
    command = subprocess.Popen(
        farm.command("host", "serve"), env=farm.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert command.stderr is not None
    lines = []
    while not lines or "Ctrl-C" not in lines[-1]:
        lines.append(command.stderr.readline())
        assert lines[-1], lines
    assert lines[0].startswith("replug: serving one as one: ") and lines[1].startswith("replug: serving two as two: ")
    for side, source in zip(farm.sides, ("source.one", "source.two"), strict=True):
        assert living(side, source) is not None
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=60)
    assert command.returncode == Exit.DONE
    assert all(line.startswith(("one: ", "two: ")) for line in out.splitlines())
    assert not [side for side in farm.sides if side.root.exists()]


def test_in_the_background_down_ends_what_the_file_names(farm: Farm) -> None:
    up = farm.run("host", "serve", "--background")
    assert up.returncode == 0, up.stderr
    assert "'replug host down --instance one' ends it" in up.stderr
    assert farm.run("host", "down").returncode == 0
    assert not [side for side in farm.sides if side.root.exists()]


def test_down_ends_the_others_where_one_was_ended_before(farm: Farm) -> None:
    assert farm.run("host", "serve", "--background").returncode == 0
    take_down(farm.sides[0])
    assert farm.run("host", "down").returncode == 0
    assert not [side for side in farm.sides if side.root.exists()]
    again = farm.run("host", "down")
    assert again.returncode == Exit.DOWN
    assert again.stderr.startswith("replug: host down: no host side runs here as instance 'one', 'two': nothing to do")


def test_where_one_cannot_come_up_none_stays(farm: Farm) -> None:
    (farm.work / "two.img").unlink()
    up = farm.run("host", "serve", "--background")
    assert up.returncode != 0 and "two.img" in up.stderr
    assert not [side for side in farm.sides if side.root.exists()]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"port:1-2"', '"S1"', "one and two both take the gadget S1"),
        ('gadget = "S1"', "", "one takes any gadget, also those of the others"),
    ],
)
def test_two_sides_that_could_mean_one_gadget_are_refused(
    farm: Farm, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    farm.config.write_text(farm.config.read_text().replace(old, new))
    assert main(["host", "serve", "--config", str(farm.config)]) == Exit.BAD_INPUT
    assert words in capsys.readouterr().err
