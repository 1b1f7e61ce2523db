"""The main job on a real kernel: a disk over USB, faults under load, ways in and out, nothing left behind.

Both sides run in this machine, joined by dummy_hcd. Each test names the row of the fault table or the item it shows.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from tools.demo import dd, faults, inside

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
DISK_BYTES, SCRATCH_BYTES = 16 << 20, 12 << 20


def replug(*arguments: str) -> subprocess.CompletedProcess[str]:
    return inside.replug(*arguments)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Bench]:
    work = tmp_path_factory.mktemp("main")
    (work / "disk.img").write_bytes(os.urandom(DISK_BYTES))
    (work / "scratch.img").write_bytes(bytes(SCRATCH_BYTES))
    with inside.both_sides(work / "disk.img", work / "scratch.img") as both:
        yield both


@pytest.fixture(scope="module")
def load(bench: inside.Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[inside.Load]:
    """A reading and a writing dd, O_DIRECT, kept going through the tests that use it; each is judged when it ends."""
    load = inside.Load(bench, tmp_path_factory.mktemp("load"))
    yield load
    load.stop()


def every_fault(bench: inside.Bench) -> dict[str, faults.Fault]:
    return {fault.title.replace(bench.image_role, "queue"): fault for fault in inside.all_faults(bench)}


@pytest.mark.parametrize(
    "title",
    [
        "cable out (UDC unbound)",
        "cable out (authorized 0)",
        "kill -9 gadget queue",
        "kill -9 gadget usb",
        "kill -9 host usb",
        "kill -9 host source.disk",
        "kill -9 gadget session",
        "kill -9 host session",
        "kill -9 gadget watchdog",
        "kill -9 host watchdog",
        "kill -9 gadget spawner",
        "kill -9 host spawner",
    ],
)
def test_both_dds_go_on_after(title: str, bench: inside.Bench, load: inside.Load) -> None:
    known = every_fault(bench)
    for side in Side:
        known |= {f.title: f for f in (faults.kill(side, role) for role in ("watchdog", "spawner"))}
    inside.strike(load, known[title])


def test_both_dds_end_with_every_byte_right(load: inside.Load) -> None:
    load.finish()
    assert load.verified_bytes >= DISK_BYTES + SCRATCH_BYTES


def test_usb_device_keeps_its_number_when_a_queue_dies(bench: inside.Bench) -> None:
    number = (inside._usb_device() / "devnum").read_text()
    before = living(Runtime(Side.GADGET), bench.image_role)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    inside.wait_for("a new queue", lambda: (living(Runtime(Side.GADGET), bench.image_role) or before) != before)
    assert dd.completions(bench.image_device) >= 0
    assert (inside._usb_device() / "devnum").read_text() == number


def test_status_is_healthy_and_says_what_runs(bench: inside.Bench) -> None:
    def healthy() -> bool:
        return all(replug("status", "--json", "--side", side).returncode == 0 for side in Side)

    inside.wait_for("both sides to be healthy", healthy, interval_s=0.5)
    status = inside.status(Side.GADGET)
    assert (status["version"], status["side"], status["state"]) == (1, "gadget", "healthy")
    assert status["link"]["state"] == "online" and int(status["session_id"], 16)
    roles = {p["role"]: p for p in status["processes"]}
    assert {"usb", "session", bench.image_role, "watchdog", "spawner"} <= roles.keys()
    assert all(p["state"] == "running" for p in roles.values())
    disk = next(e for e in status["exports"] if e["device"] == bench.image_device)
    assert (disk["state"], disk["size_bytes"], disk["block_size"]) == ("live", DISK_BYTES, 4096)


def test_restart_replaces_one_process_and_no_other(bench: inside.Bench) -> None:
    before = inside.pids()
    done = replug("restart", "usb", "--side", "host")
    assert done.returncode == 0, done.stderr
    after = inside.pids()
    assert after[Side.HOST, "usb"] != before[Side.HOST, "usb"]
    assert {k: v for k, v in after.items() if k != (Side.HOST, "usb")} == {
        k: v for k, v in before.items() if k != (Side.HOST, "usb")
    }


def test_restart_of_an_unknown_role_is_told_the_known_ones(bench: inside.Bench) -> None:
    done = replug("restart", "nobody", "--side", "gadget")
    assert done.returncode == 2
    assert done.stderr.startswith("replug: nobody: ") and "session" in done.stderr and done.stderr.count("\n") == 1


def test_a_second_gadget_up_is_refused_while_the_first_lives(bench: inside.Bench) -> None:
    before = inside.pids()
    done = replug("gadget", "up")
    assert done.returncode == 3
    assert done.stderr.startswith("replug: ") and done.stderr.count("\n") == 1
    assert inside.pids() == before


def test_a_file_that_is_served_is_not_served_twice(bench: inside.Bench) -> None:
    done = replug("host", "serve", str(bench.image), "--instance", "second")
    assert done.returncode == 2 and "served" in done.stderr and done.stderr.count("\n") == 1
    assert not Runtime(Side.HOST, "second").root.exists()


def test_flush_reaches_the_hosts_file_and_discard_frees_it(bench: inside.Bench) -> None:
    device = bench.scratch_device
    fd = os.open(device, os.O_RDWR)
    try:
        os.pwrite(fd, b"\xab" * 65536, 1 << 20)
        os.fsync(fd)
        assert bench.scratch.read_bytes()[1 << 20 : (1 << 20) + 65536] == b"\xab" * 65536
    finally:
        os.close(fd)
    subprocess.run(["blkdiscard", "-o", str(1 << 20), "-l", "65536", device], check=True)
    assert bench.scratch.read_bytes()[1 << 20 : (1 << 20) + 65536] == bytes(65536)


def test_down_names_the_holder_of_a_device_and_changes_nothing(bench: inside.Bench) -> None:
    before = inside.pids()
    with open(bench.image_device, "rb"):
        done = replug("gadget", "down")
    assert done.returncode == 3
    assert bench.image_device in done.stderr and str(os.getpid()) in done.stderr and done.stderr.count("\n") == 1
    assert inside.pids() == before


def test_the_device_stays_parked_after_ctrl_c_of_the_host_and_goes_on_with_the_next(bench: inside.Bench) -> None:
    bench.serve.send_signal(signal.SIGINT)
    assert bench.serve.wait(60) == 0
    assert not Runtime(Side.HOST).root.exists()

    def parked() -> bool:
        exports = inside.status(Side.GADGET)["exports"]
        return len(exports) == 2 and all(e["state"] == "parked" and e["reason"] for e in exports)

    inside.wait_for("both devices to be parked", parked, interval_s=0.5)
    reader = dd.ReadDd(bench.image_device, inside.image.sha256(bench.image))
    reader.start()
    inside.wait_for("the read to wait in the kernel", lambda: dd.in_flight(bench.image_device) > 0)
    with bench.image.with_suffix(".second.log").open("w") as log:
        bench.serve = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "host", "serve", str(bench.image), str(bench.scratch)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    inside.wait_for("the waiting read to end", lambda: reader.done)
    assert reader.outcome == dd.Outcome(0, reader.outcome.words if reader.outcome else "", True, DISK_BYTES)
    inside.wait_for("the next host to be up", lambda: inside.is_up(Path(log.name)))


def test_forced_down_fails_what_waits_and_leaves_nothing(bench: inside.Bench) -> None:
    bench.serve.send_signal(signal.SIGINT)
    assert bench.serve.wait(60) == 0
    reader = subprocess.Popen(
        ["dd", f"if={bench.image_device}", "iflag=direct", "bs=4096", "of=/dev/null"], stderr=subprocess.PIPE, text=True
    )
    inside.wait_for("the read to wait in the kernel", lambda: dd.in_flight(bench.image_device) > 0)
    started = time.monotonic()
    done = replug("gadget", "down", "--force")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "replug: gadget is down")
    assert time.monotonic() - started < 30
    assert reader.wait(30) == 1
    assert reader.stderr is not None and "Input/output error" in reader.stderr.read()
    inside._see_nothing_left()
    assert replug("status", "--side", "gadget").returncode == 5


def test_gadget_without_a_controller_is_refused_with_one_line(tmp_path: Path) -> None:
    done = replug("gadget", "up", "--udc", "no_such_udc", "--instance", "other")
    assert done.returncode == 2
    assert done.stderr.startswith("replug: no_such_udc: ") and done.stderr.count("\n") == 1
    assert not Runtime(Side.GADGET, "other").root.exists()


def test_status_json_of_a_side_that_does_not_run_says_down() -> None:
    done = replug("status", "--json", "--side", "host", "--instance", "never")
    assert done.returncode == 5
    assert json.loads(done.stdout)["state"] == "down"
