"""The picture of `replug top --record`: an SVG that shows each screen in its time, by itself and without scripts."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import tools
from tools.top.layout import Line
from tools.top.picture import FRAMES, Record

ROOT = Path(tools.__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
COMMAND = [sys.executable, "-m", "tools.cli", "top"]


def rows(svg: str) -> dict[str, ET.Element]:
    """The group of each text that a row had."""
    groups = ET.fromstring(svg).findall(f"{SVG}g/{SVG}g")
    return {"".join(text.text or "" for text in group.findall(f"{SVG}text")): group for group in groups}


def seen(svg: str, text: str, at_s: float) -> bool:
    """Is this row there at that time of the animation?"""
    group = rows(svg)[text]
    moves = group.find(f"{SVG}animate")
    if moves is None:
        return group.get("visibility") == "visible"
    share = at_s / float(moves.attrib["dur"].removesuffix("s"))
    times = [float(time) for time in moves.attrib["keyTimes"].split(";")]
    values = moves.attrib["values"].split(";")
    assert times[0] == 0 and times == sorted(times) and len(times) == len(values)
    return [v for t, v in zip(times, values, strict=True) if t <= share][-1] == "visible"


def screen(state: str) -> list[Line]:
    return [[("replug <top>", "bold")], [("usb ", ""), (state, "green")]]


@pytest.fixture
def record() -> Record:
    record = Record()
    for at_s, state in ((100.0, "running"), (101.0, "starting"), (102.0, "running"), (102.5, "running")):
        record.add(at_s, screen(state))
    return record


def test_each_row_is_seen_when_it_was_and_what_never_changes_stands_still(record: Record) -> None:
    svg = record.svg(20, 2, "t")
    assert [seen(svg, "usb running", t) for t in (0.0, 0.9, 1.1, 1.9, 2.1, 3.9)] == [
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert [seen(svg, "usb starting", t) for t in (0.0, 0.9, 1.1, 1.9, 2.1)] == [False, False, True, True, False]
    assert rows(svg)["replug <top>"].find(f"{SVG}animate") is None


def test_what_does_not_move_shows_the_last_screen(record: Record) -> None:
    shown = {text for text, group in rows(record.svg(20, 2, "t")).items() if group.get("visibility") == "visible"}
    assert shown == {"replug <top>", "usb running"}


def test_a_long_record_keeps_the_newest_frames() -> None:
    record = Record()
    for number in range(FRAMES + 10):
        record.add(float(number), [[(f"frame {number}", "")]])
    texts = rows(record.svg(20, 1, "t"))
    assert len(texts) == FRAMES and "frame 9" not in texts and f"frame {FRAMES + 9}" in texts


def test_a_record_of_nothing_is_a_picture_too() -> None:
    assert rows(Record().svg(80, 24, "t")) == {}


def test_it_is_written_without_a_terminal(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "REPLUG_RUNTIME": str(tmp_path / "r")}
    file = tmp_path / "top.svg"
    command = [*COMMAND, "--record", str(file), "--for", "600ms", "--interval", "200ms"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, f"replug: written: {file}\n")
    assert any("nothing runs" in text for text in rows(file.read_text()))
    endless = subprocess.run(command[:-4], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50)
    assert endless.stderr == "replug: top: this is no terminal: say with --for how long to record\n"
    alone = subprocess.run([*COMMAND, "--for", "1s"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (alone.returncode, alone.stderr[:16]) == (2, "replug: --for: i")


def test_the_picture_of_the_readme_shows_a_kill_and_its_end() -> None:
    assert "docs/pictures/top.svg" in (ROOT / "README.md").read_text()
    texts = " ".join(rows((ROOT / "docs/pictures/top.svg").read_text()))
    assert "killed by signal 9" in texts and "respawned in" in texts and "script" not in texts
