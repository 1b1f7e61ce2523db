"""32 exports at once, one of which is removed while fio writes and verifies the others. Issue 4, item 3.

Run by `make system`: minutes. How each of a few comes and goes is tests/e2e/test_exports.py's.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common import limits
from tests.e2e.test_exports import Sides, content, sides
from tools.demo import inside

__all__ = ["sides"]  # the fixture
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(700)]
FIO_INTERRUPTED = 128  # fio's exit status after SIGINT, when all else was well
FIO = """
[global]
direct=1
ioengine=libaio
iodepth=2
rw=randwrite
bs=16k
verify=crc32c
verify_fatal=1
verify_backlog=4
time_based=1
runtime=1d
thread=1
"""


def start_fio(devices: list[str], work: Path) -> "subprocess.Popen[bytes]":
    """One job for each device, without an end: random writes, each read back and verified soon after."""
    jobs = "".join(f"[{Path(device).name}]\nfilename={device}\n" for device in devices)
    (work / "job").write_text(FIO + jobs)
    command = ["fio", "--output-format=json", f"--output={work / 'told'}", str(work / "job")]
    with (work / "words").open("w") as words:
        return subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT, cwd=work)


def done_by_all(devices: list[str], fio: "subprocess.Popen[bytes]", what: str) -> None:
    """Wait until each device has completed more reads and more writes than now."""

    def counts() -> list[list[int]]:
        stats = [Path("/sys/block", Path(device).name, "stat").read_text().split() for device in devices]
        return [[int(fields[0]), int(fields[4])] for fields in stats]  # Documentation/block/stat.rst

    before = counts()

    def more() -> bool:
        assert fio.poll() is None, f"fio has ended with {fio.returncode}"
        return all(
            one > other for now, old in zip(counts(), before, strict=True) for one, other in zip(now, old, strict=True)
        )

    inside.wait_for(what, more, 0.2)


def test_32_exports_at_once_and_one_goes_while_fio_verifies_the_others(sides: Sides, tmp_path: Path) -> None:
    """Issue 4, what it must show: each of the others is written and verified by crc32c all the while, and goes on."""
    began = time.monotonic()
    names = [f"disk{number:02}" for number in range(limits.MAX_EXPORTS)]
    sides.host("serve", "--background", *(sides.image(name, 256 << 10) for name in names))
    exports = sides.live(*names)
    up_s = time.monotonic() - began
    devices = [str(exports[name]["device"]) for name in names]
    assert len(set(devices)) == limits.MAX_EXPORTS
    refused = inside.replug("host", "add", sides.image("more"))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    gone, others = devices[0], devices[1:]
    fio = start_fio(others, tmp_path)
    try:
        done_by_all(others, fio, "the first I/O of each")
        sides.host("remove", names[0])
        inside.wait_for("the device to go", lambda: not Path(gone).exists(), 0.5)
        done_by_all(others, fio, "more I/O of each, the removed one being gone")
        fio.send_signal(signal.SIGINT)
        assert fio.wait(120) in (0, FIO_INTERRUPTED), (tmp_path / "words").read_text()
    finally:
        fio.kill()
    jobs = json.loads((told := (tmp_path / "told").read_text())[told.index("{") :])["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(others)
    assert all(job["read"]["io_bytes"] and job["write"]["io_bytes"] for job in jobs), "written, and verified"
    for name in names[1:]:
        assert content(exports[name]["device"]) == (sides.work / f"{name}.img").read_bytes() != sides.contents[name]
    took_s = time.monotonic() - began
    print(json.dumps({"up_s": round(up_s, 1), "all_s": round(took_s, 1)}))
