"""What only a newer kernel can (6.16): a disk in use grows with its file (UPDATE_SIZE), a queue drains by QUIESCE_DEV.

Run in a guest of its own, by `make newer`.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bus.runtime import Runtime, Side
from gadget.ublk.control import CONTROL_PATH, WISHED, Control
from tools.demo import dd, inside

SMALL, LARGE, SCRATCH = 8 << 20, 20 << 20, 6 << 20  # bytes
SERVED_ANEW_S = 240.0  # two starts of Python with all imports, beside a dd, in an emulated guest on a busy machine


def lacks() -> str:
    if not os.path.exists(CONTROL_PATH):
        return "no ublk driver: `make newer`"
    with Control() as control:
        missing = WISHED & ~control.features()
    return f"this kernel lacks {missing!r}: `make newer`" if missing else ""


pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.skipif(bool(lacks()), reason=lacks())]


@dataclass
class Grown:
    """Both sides, up; `content` is what the file will be, and begins with what it is."""

    bench: inside.Bench
    content: bytes

    @property
    def device(self) -> str:
        return self.bench.image_device

    def serve_anew(self, size_bytes: int) -> None:
        self.bench.serve.send_signal(signal.SIGINT)
        assert self.bench.serve.wait(inside.DEADLINE_S) == 0
        self.bench.image.write_bytes(self.content[:size_bytes])  # the same inode
        files = [str(self.bench.image), str(self.bench.scratch)]
        self.bench.serve = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "host", "serve", *files],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def export(self) -> dict[str, Any]:
        exports = inside.status(Side.GADGET)["exports"]
        return next((e for e in exports if e["device"] == self.device), {})

    def until(self, what: str, state: str, size_bytes: int) -> dict[str, Any]:
        def so() -> dict[str, Any] | None:
            now = self.export()
            return now if (now.get("state"), device_bytes(self.device)) == (state, size_bytes) else None

        end = time.monotonic() + SERVED_ANEW_S
        while (found := so()) is None:
            if time.monotonic() > end:
                inside._tell_logs()
                raise AssertionError(f"waited {SERVED_ANEW_S:g} s for {what}: {self.export()}")
            time.sleep(0.5)  # each look costs the processes that are looked at
        return found


def device_bytes(device: str) -> int:
    return int(Path(f"/sys/block/{Path(device).name}/size").read_text()) * 512


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    work, content = tmp_path_factory.mktemp("growth"), os.urandom(LARGE)
    (work / "disk.img").write_bytes(content[:SMALL])
    (work / "scratch.img").write_bytes(bytes(SCRATCH))
    with inside.both_sides(work / "disk.img", work / "scratch.img") as bench:
        yield Grown(bench, content)


def test_devices_are_made_with_what_the_driver_offers(here: Grown) -> None:
    with Control() as control:
        info = control.info(int(here.device.removeprefix("/dev/ublkb")))
    assert info.flags & WISHED == WISHED


def test_a_queue_that_drains_has_the_driver_hand_out_nothing_more(here: Grown) -> None:
    reader = dd.ReadDd(here.device, hashlib.sha256(here.content[:SMALL]).hexdigest())
    reader.start()
    inside.wait_for("the dd to be in the middle", lambda: 0 < reader.offset < SMALL // 2)
    role = here.bench.image_role
    drained = inside.replug("drain", role, "--side", "gadget")
    assert drained.returncode == 0, drained.stderr
    log = Runtime(Side.GADGET).log_path(role).read_text()
    assert f"{here.device} is quiesced" in log
    assert "QUIESCE" not in log, "refused by the driver"
    inside.wait_for("the dd to end", lambda: reader.done)
    assert reader.outcome is not None and (reader.outcome.status, reader.outcome.right) == (0, True), reader.outcome


def test_a_dd_goes_on_through_growth_and_reads_what_was_added(here: Grown) -> None:
    before, number = here.export(), device_bytes(here.device)
    assert number == SMALL
    reader = dd.ReadDd(here.device, hashlib.sha256(here.content).hexdigest())
    reader.start()
    inside.wait_for("the dd to be in the middle", lambda: 0 < reader.offset < SMALL // 2)
    here.serve_anew(LARGE)
    after = here.until("the disk to grow", "live", LARGE)
    assert (after["id"], after["size_bytes"]) == (before["id"], LARGE)
    inside.wait_for("the dd to end", lambda: reader.done)
    assert reader.outcome is not None
    assert (reader.outcome.status, reader.outcome.size_bytes, reader.outcome.right) == (0, LARGE, True), reader.outcome


def test_a_file_that_was_cut_parks_the_device_as_before(here: Grown) -> None:
    here.serve_anew(SMALL)
    parked = here.until("the device to be parked", "parked", LARGE)
    inside.wait_for("the reason", lambda: "another disk" in here.export()["reason"], interval_s=0.5)
    assert parked["device"] == here.device
    here.serve_anew(LARGE)
    here.until("it to be live again", "live", LARGE)
