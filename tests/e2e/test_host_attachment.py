"""The host side against a plain v0 gadget on the real kernel: every byte, deaths, unplugging, gadgets gone wrong."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EINVAL, EROFS
from pathlib import Path

import pytest

from bus.control import ask
from bus.runtime import Runtime, Side, living
from common.wire import Op, Request
from tests.e2e.v0_gadget import V0Gadget, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
BLOCK = 4096
SIZE = 8 << 20
HOST = Runtime(Side.HOST)


@dataclass
class Bench:
    gadget: V0Gadget
    image: Path

    def write(self, lba: int, blocks: int) -> bytes:
        data = os.urandom(blocks * BLOCK)
        assert self.gadget.ask(Op.WRITE, lba, blocks, data).status == 0
        return data

    def read(self, lba: int, blocks: int) -> bytes:
        assert self.gadget.ask(Op.READ, lba, blocks).status == 0
        return self.gadget.payload(blocks * BLOCK)

    def works(self) -> None:
        """A write, a flush and a read, byte for byte."""
        data = self.write(7, 40)
        assert self.gadget.ask(Op.FLUSH).status == 0
        assert self.read(7, 40) == data
        assert self.image.read_bytes()[7 * BLOCK : 47 * BLOCK] == data


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    work = tmp_path_factory.mktemp("host")
    image = work / "disk.img"
    image.write_bytes(os.urandom(SIZE))
    (work / "fixed.img").write_bytes(bytes(SIZE))
    gadget = V0Gadget(work / "ffs")
    with (work / "serve.log").open("w") as log:
        serve = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "host", "serve", str(image), f"file:{work}/fixed.img?ro"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        gadget.wait_configured()
        yield Bench(gadget, image)
    finally:
        for file in sorted(HOST.root.glob("log/*.log")):
            print(f"== {file.name}\n{file.read_text()[-6000:]}")
        serve.send_signal(signal.SIGINT)
        status = serve.wait(60)
        gadget.close()
    assert status == 0, (work / "serve.log").read_text()
    assert not HOST.root.exists()


def kill(role: str) -> int:
    record = living(HOST, role)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    return record.pid


def open_fds(role: str) -> int:
    record = living(HOST, role)
    assert record is not None
    return len(os.listdir(f"/proc/{record.pid}/fd"))


def test_the_host_announces_the_files(bench: Bench) -> None:
    assert bench.gadget.exports is not None
    assert [(each.block_size, each.size_bytes) for each in bench.gadget.exports.exports] == [(BLOCK, SIZE)] * 2


@pytest.mark.parametrize("op", [Op.WRITE, Op.DISCARD])
def test_a_read_only_export_is_not_changed_whatever_a_gadget_asks(op: Op, bench: Bench) -> None:
    """Issue 4, items 1 and 6: v0 cannot say that an export is read-only, so its gadget will try."""
    assert bench.gadget.exports is not None
    request = Request(op, 5, bench.gadget.exports.exports[1].export_id, 0, 8)
    bench.gadget.send(request, os.urandom(8 * BLOCK) if op is Op.WRITE else b"")
    assert bench.gadget.response().status == EROFS
    assert bench.image.with_name("fixed.img").read_bytes() == bytes(SIZE)
    bench.works()


@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 32, 256], ids=lambda n: f"{n * 4} KiB")
def test_payloads_of_all_sizes_arrive_byte_for_byte(blocks: int, bench: Bench) -> None:
    data = bench.write(100, blocks)
    assert bench.image.read_bytes()[100 * BLOCK : (100 + blocks) * BLOCK] == data
    assert bench.read(100, blocks) == data


def test_whole_disk_reads_as_the_file(bench: Bench) -> None:
    want = bench.image.read_bytes()
    assert b"".join(bench.read(lba, 64) for lba in range(0, SIZE // BLOCK, 64)) == want


def test_many_requests_at_once_are_all_answered_with_their_own_bytes(bench: Bench) -> None:
    """Writes and reads mixed, none waiting for another; read payloads come in the order of their Responses."""
    assert bench.gadget.exports is not None
    export = bench.gadget.exports.exports[0].export_id
    written = {number: os.urandom(BLOCK * (1 + number % 5)) for number in range(0, 24, 2)}
    before = bench.image.read_bytes()

    def send() -> None:
        for number in range(24):
            op = Op.READ if number % 2 else Op.WRITE
            payload = written.get(number, b"")
            request = Request(op, number, export, number * 8, len(payload) // BLOCK or 8)
            bench.gadget.send(request, payload)

    sender = threading.Thread(target=send)
    sender.start()
    seen = set()
    for _ in range(24):
        response = bench.gadget.response()
        assert response.status == 0
        seen.add(response.request_id)
        if response.op is Op.READ:
            start = response.lba * BLOCK
            assert bench.gadget.payload(8 * BLOCK) == before[start : start + 8 * BLOCK]
    sender.join(10)
    assert seen == set(range(24))
    after = bench.image.read_bytes()
    assert all(after[n * 8 * BLOCK : n * 8 * BLOCK + len(data)] == data for n, data in written.items())


def test_discard_frees_the_bytes(bench: Bench) -> None:
    assert bench.gadget.ask(Op.DISCARD, 64, 16).status == 0
    assert bench.image.read_bytes()[64 * BLOCK : 80 * BLOCK] == bytes(16 * BLOCK)


def test_request_past_the_end_is_told_einval_and_its_payload_does_no_harm(bench: Bench) -> None:
    assert bench.gadget.ask(Op.READ, SIZE // BLOCK, 1).status == EINVAL
    assert bench.gadget.ask(Op.WRITE, SIZE // BLOCK - 1, 2, os.urandom(2 * BLOCK)).status == EINVAL
    bench.works()


def test_death_of_the_source_is_not_noticed_but_as_a_pause(bench: Bench) -> None:
    configurations = bench.gadget.configurations
    before = kill("source.disk")
    bench.works()
    after = living(HOST, "source.disk")
    assert after is not None and after.pid != before
    assert bench.gadget.configurations == configurations


def test_death_of_the_session_is_not_noticed_and_its_successor_configures_nothing(bench: Bench) -> None:
    configurations, enables = bench.gadget.configurations, bench.gadget.enables
    before = kill("session")
    bench.works()
    until(lambda: (living(HOST, "session") or before) != before, "another session")
    statuses = bench.gadget.statuses
    until(lambda: bench.gadget.statuses > statuses + 1, "two STATUS of the successor")
    until(lambda: ask(HOST, "session", "status")["link"]["state"] == "online", "the successor to be online")
    assert (bench.gadget.configurations, bench.gadget.enables) == (configurations, enables)


def test_death_of_usb_ends_in_a_reset_and_a_new_hand_shake(bench: Bench) -> None:
    configurations, enables = bench.gadget.configurations, bench.gadget.enables
    kill("usb")
    bench.gadget.wait_configured(configurations)
    assert bench.gadget.enables > enables
    bench.works()


def test_unplugged_and_plugged_in_again_goes_on(bench: Bench) -> None:
    configurations, before = bench.gadget.configurations, living(HOST, "usb")
    bench.gadget.unplug()
    until(lambda: ask(HOST, "session", "status")["link"]["state"] == "parked", "the host to notice")
    bench.gadget.plug()
    bench.gadget.wait_configured(configurations)
    bench.works()
    assert living(HOST, "usb") == before


def test_another_session_id_starts_the_hand_shake_over(bench: Bench) -> None:
    configurations = bench.gadget.configurations
    bench.gadget.session_id += 1
    bench.gadget.wait_configured(configurations)
    bench.works()
    until(
        lambda: int(ask(HOST, "session", "status")["session_id"], 16) == bench.gadget.session_id, "the new session's id"
    )


@pytest.mark.parametrize("message", [b"short", b"\x07" + bytes(27), b"\x01" + bytes(7) + b"\xff" * 20])
def test_gadget_that_breaks_the_protocol_is_reset_and_served_again(message: bytes, bench: Bench) -> None:
    configurations, before = bench.gadget.configurations, living(HOST, "usb")
    bench.gadget.send_raw(message)
    bench.gadget.wait_configured(configurations)
    bench.works()
    assert living(HOST, "usb") == before


def test_attachments_leave_nothing_open_behind_them(bench: Bench) -> None:
    counts = []
    for _ in range(4):
        configurations = bench.gadget.configurations
        bench.gadget.unplug()
        until(lambda: ask(HOST, "usb", "status")["link"] == "detached", "usb to let go")
        bench.gadget.plug()
        bench.gadget.wait_configured(configurations)
        counts.append(open_fds("usb"))
    assert counts[-1] <= counts[0] + 1, f"file descriptors of usb after each attachment: {counts}"
