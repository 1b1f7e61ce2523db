"""A FunctionFS that somebody else has mounted, in a gadget that somebody else makes and binds (issue 4, item 4).

That somebody is this test, and has another function beside ours in its gadget: a board's own init, or Android's.
"""

import contextlib
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.runtime import Runtime, Side, living
from common.wire import ExportRecord
from gadget.usb import udc
from gadget.usb.functionfs import Ep0, EventType
from tests.e2e.v0_host import V0Host, await_event, number
from tools.demo import dd, inside
from tools.demo import image as images
from tools.supervise.launch import all_living, kill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
GADGET = Path("/sys/kernel/config/usb_gadget/board")
SIZE = 8 << 20
V0_RECORD = ExportRecord(0x5EED, 512, 1 << 20)


class Board:
    """Makes gadget `board` with FunctionFS `disk`, mounted at `ours`, and maybe `other`, which it serves itself."""

    def __init__(self, work: Path, options: str = "", other: bool = True) -> None:
        self.controller = udc.choose(None)
        self.ours, self._other = work / "disk", work / "other"
        self.names = ["other", "disk"] if other else ["disk"]  # so ours is not the first interface
        subprocess.run(["mount", "-t", "configfs", "none", "/sys/kernel/config"], check=False, capture_output=True)
        for directory in (GADGET / "strings/0x409", GADGET / "configs/c.1"):
            directory.mkdir(parents=True)
        for attribute, value in (("idVendor", "0x1209"), ("idProduct", "0x0001"), ("strings/0x409/serialnumber", "b7")):
            (GADGET / attribute).write_text(value)
        for name in self.names:
            (GADGET / "functions" / f"ffs.{name}").mkdir()
            (GADGET / "configs/c.1" / f"ffs.{name}").symlink_to(GADGET / "functions" / f"ffs.{name}")
            (work / name).mkdir()
            said = ["-o", options] if options else []
            subprocess.run(["mount", "-t", "functionfs", *said, name, str(work / name)], check=True)
        self.ep0 = self._serve_other() if other else None

    def _serve_other(self) -> Ep0:
        fd = os.open(self._other / "ep0", os.O_RDWR | os.O_NONBLOCK)
        one = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 2, 0xFF, 0x11, 0x22, 0)
        one += b"".join(struct.pack("<BBBBHB", 7, 5, address, 2, 512, 0) for address in (0x81, 0x02))
        os.write(fd, struct.pack("<IIII", 3, 16 + len(one), 2, 3) + one)  # high speed only
        os.write(fd, struct.pack("<IIII", 2, 16, 0, 0))
        return Ep0(fd)

    def bind(self) -> None:
        (GADGET / "UDC").write_text(self.controller)

    def unbind(self) -> None:
        (GADGET / "UDC").write_text("\n")

    @property
    def bound(self) -> bool:
        return (GADGET / "UDC").read_text().strip() == self.controller

    def told(self) -> list[EventType]:
        """What the other function has been told since the last look."""
        assert self.ep0 is not None
        events = [event.type for event in self.ep0.events()]
        return events + self.told() if events else []

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.unbind()
        if self.ep0 is not None:
            os.close(self.ep0.fd)
        for place in (self.ours, self._other)[: len(self.names)]:
            subprocess.run(["umount", str(place)], check=True)
        for name in self.names:
            (GADGET / "configs/c.1" / f"ffs.{name}").unlink()
            (GADGET / "functions" / f"ffs.{name}").rmdir()
        for directory in ("configs/c.1", "strings/0x409", "."):
            (GADGET / directory).rmdir()


@pytest.fixture(params=["no_disconnect=1"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path, request.param)
    yield board
    with contextlib.suppress(inside.DemoFailed):
        if Runtime(Side.GADGET).root.exists():
            inside.replug("gadget", "down", "--force")
    board.close()
    inside._see_nothing_left()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "disk.img"
    image.write_bytes(os.urandom(SIZE))
    served = inside.replug("host", "serve", "--background", str(image))
    assert served.returncode == 0, served.stderr
    yield image
    if Runtime(Side.HOST).root.exists():
        host_down()


def host_down() -> None:
    down = inside.replug("host", "down")
    assert down.returncode == 0, down.stderr


def up(board: Board, *options: str) -> subprocess.CompletedProcess[str]:
    return inside.replug("gadget", "up", "--ffs-dir", str(board.ours), *options)


def bring_up(board: Board) -> None:
    done = up(board)
    assert done.returncode == 0, done.stderr
    assert f"gadget is up in {board.ours}, whose gadget can be bound now" in done.stderr


def live() -> str:
    exports = [e for e in inside.status(Side.GADGET)["exports"] if e["state"] == "live"]
    return next((e["device"] for e in exports if Path(e["device"]).exists()), "")


def pid(side: Side, role: str) -> int:
    record = inside.wait_for(f"{side} {role}", lambda: living(Runtime(side), role))
    return int(record.pid)


def reads(device: str, image: Path) -> dd.ReadDd:
    reader = dd.ReadDd(device, images.sha256(image))
    reader.start()
    inside.wait_for("dd to be in the middle", lambda: reader.offset > 0 and dd.in_flight(device) > 0)
    return reader


def ends_well(reader: dd.ReadDd) -> None:
    inside.wait_for("dd to end", lambda: reader.done)
    assert reader.outcome is not None and (reader.outcome.status, reader.outcome.right) == (0, True), reader.outcome


def test_what_is_no_functionfs_or_said_twice_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for arguments, why in (
        ([str(plain)], "a plain directory, not a FunctionFS"),
        (["/proc"], "a mount of proc, not a FunctionFS"),
        ([str(tmp_path / "nowhere")], "no such directory"),
        ([str(plain), "--udc", "x", "--vid", "0x1209"], "--udc, --vid are said by who makes the gadget"),
    ):
        done = inside.replug("gadget", "up", "--ffs-dir", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and why in done.stderr
    assert not Runtime(Side.GADGET).root.exists()


def test_one_that_another_program_has_is_named_and_left_to_it(board: Board) -> None:
    other = board.ours.with_name("other")
    done = inside.replug("gadget", "up", "--ffs-dir", str(other))
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert f"{other}: busy: " in done.stderr and f"(pid {os.getpid()})" in done.stderr
    assert not Runtime(Side.GADGET).root.exists()
    bring_up(board)
    board.bind()  # what it wrote to its ep0 still counts
    await_event("the other function to be enabled", lambda: EventType.ENABLE in board.told())


def test_a_disk_over_it_outlives_kills_and_the_owners_unbinding_and_down_leaves_all_of_it(
    board: Board, image: Path
) -> None:
    bring_up(board)
    assert not board.bound
    waits = inside.status(Side.GADGET)["link"]
    assert waits["state"] == "absent" and "waits for its gadget to be bound" in waits["reason"]
    board.bind()
    device = inside.wait_for("the device to be live", live, interval_s=0.5)
    assert inside.status(Side.GADGET)["link"]["speed"] == udc.speed(board.controller)
    address = number()

    for side, role in ((Side.GADGET, "usb"), (Side.HOST, "usb"), (Side.GADGET, "usb")):
        reader, before = reads(device, image), pid(side, role)
        board.told()
        os.kill(before, 9)
        ends_well(reader)
        assert pid(side, role) != before
        assert board.bound and number() == address and not board.told()  # nobody else has noticed

    reader = reads(device, image)
    board.unbind()
    inside.wait_for("the link to be gone", lambda: inside.status(Side.GADGET)["link"]["state"] == "absent")
    os.kill(pid(Side.GADGET, "usb"), 9)  # with the link down, too
    board.bind()
    ends_well(reader)

    inside.wait_for("the device to be live", live, interval_s=0.5)
    host_down()  # one that went on would set the interface anew, at which the kernel unbinds
    board.told()
    down = inside.replug("gadget", "down")
    assert down.returncode == 0, down.stderr
    assert board.bound and not board.told()
    assert (GADGET / "functions/ffs.disk").is_dir() and (board.ours / "ep0").exists()
    left = [n for p in Path("/proc").glob("[0-9]*/comm") if (n := inside._comm(p)).startswith("ffs-mm")]
    assert not left


def test_all_of_it_killed_at_once_is_taken_over_by_the_next_up_and_a_binding(board: Board, image: Path) -> None:
    bring_up(board)
    board.bind()
    device = inside.wait_for("the device to be live", live, interval_s=0.5)
    reader = reads(device, image)
    kill(all_living(Runtime(Side.GADGET)))
    bring_up_again = up(board)
    assert bring_up_again.returncode == 0, bring_up_again.stderr
    assert "its devices taken over" in bring_up_again.stderr
    assert not board.bound  # the kernel's doing, when the last descriptor was closed
    board.bind()
    ends_well(reader)


@pytest.mark.parametrize("board", [""], indirect=True)
def test_without_no_disconnect_the_kernel_unbinds_at_down_and_the_rest_stays(board: Board, image: Path) -> None:
    bring_up(board)
    board.bind()
    device = inside.wait_for("the device to be live", live, interval_s=0.5)
    ends_well(reads(device, image))
    down = inside.replug("gadget", "down")
    assert down.returncode == 0, down.stderr
    assert not board.bound and (GADGET / "configs/c.1/ffs.other").is_symlink()
    bring_up(board)
    board.bind()
    device = inside.wait_for("the device to be live again", live, interval_s=0.5)
    ends_well(reads(device, image))


def test_a_v0_host_is_told_nothing_until_it_begins_anew(tmp_path: Path) -> None:
    """Its payloads have no epoch: after a death of usb nothing may go on, and to unbind is not ours."""
    board = Board(tmp_path, other=False)
    try:
        bring_up(board)
        board.bind()
        host = V0Host(V0_RECORD)
        host.data[:] = os.urandom(V0_RECORD.size_bytes)
        host.configure()
        host.serve()
        device = inside.wait_for("the device to be live", live, interval_s=0.5)
        before = pid(Side.GADGET, "usb")
        os.kill(before, 9)
        inside.wait_for("a successor", lambda: pid(Side.GADGET, "usb") != before)
        link = inside.wait_for("it to say so", lambda: (s := inside.status(Side.GADGET)["link"]).get("reason") and s)
        assert link["state"] == "absent" and link["reason"].startswith("a v0 host must begin anew")
        for _ in range(2):  # also after it has tried
            with pytest.raises(OSError, match="Broken pipe"):
                host.status()
            with contextlib.suppress(OSError):
                host.send_config(b"")
        reader = subprocess.Popen(["dd", f"if={device}", "iflag=direct", "bs=64K"], stdout=-1, stderr=-3)
        address = number()
        host.leave()  # resets the device
        host = V0Host(V0_RECORD)
        host.data[:] = content = os.urandom(V0_RECORD.size_bytes)
        host.configure()
        host.serve()
        assert reader.communicate(timeout=60)[0] == content
        assert number() == address and board.bound
        host.leave()
        assert inside.replug("gadget", "down").returncode == 0
    finally:
        if Runtime(Side.GADGET).root.exists():
            inside.replug("gadget", "down", "--force")
        board.close()
    inside._see_nothing_left()
