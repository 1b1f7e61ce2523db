"""A file that has grown is a larger disk of the same device (issue 4, item 3): real processes, the kernels modelled.

The models can UPDATE_SIZE; on a kernel that can, it is shown by tests/newer/test_growth.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bus import fds
from bus.control import ask
from bus.runtime import Runtime, Side
from common.errors import ReplugError
from tests.native.bench import Bench, await_, bench, native_host
from tests.native.wire import call
from tests.unit.test_supervise_succession import connect
from tools.cli.side import take_down

pytestmark = pytest.mark.timeout(120)
GADGET, HOST = Runtime(Side.GADGET), Runtime(Side.HOST)
SMALL, LARGE = 1 << 20, 3 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(SMALL))
    return path


@pytest.fixture
def here(image: Path) -> Iterator[Bench]:
    with bench([image]) as here:
        yield here
        assert here.complaints() == []


def export() -> dict[str, Any]:
    try:
        exports = ask(GADGET, "session", "status", timeout_s=2.0)["exports"]
    except ReplugError:
        return {}
    assert len(exports) <= 1
    return dict(exports[0]) if exports else {}


def serve_anew(here: Bench, image: Path, size_bytes: int) -> None:
    take_down(HOST, lambda text: None)
    os.truncate(image, size_bytes)
    here.plans[Side.HOST] = native_host([image])
    here.bring_up(Side.HOST)


def device_bytes() -> int:
    return int(call("ublk_get_params", 0)[0])


def live_with(size_bytes: int) -> bool:
    now = export()
    return (now.get("state"), now.get("size_bytes")) == ("live", size_bytes) and device_bytes() == size_bytes


def test_a_grown_file_makes_the_device_larger_and_a_cut_one_parks_it(here: Bench, image: Path) -> None:
    before = export()
    serve_anew(here, image, LARGE)
    await_(lambda: live_with(LARGE), f"the device to grow: {export()}")
    assert {name: export()[name] for name in ("id", "device", "role")} == {
        name: before[name] for name in ("id", "device", "role")
    }
    serve_anew(here, image, SMALL)
    await_(lambda: export().get("state") == "parked" and "another disk" in export()["reason"], "it to be parked")
    assert device_bytes() == LARGE
    serve_anew(here, image, LARGE)
    await_(lambda: live_with(LARGE), "it to be live again")


@pytest.mark.parametrize("point", ["queue.recovering", "queue.fetched", "queue.growing"])
def test_a_queue_that_dies_while_it_grows_leaves_it_to_its_successor(here: Bench, image: Path, point: str) -> None:
    role = export()["role"]
    with connect(GADGET) as sock:
        fds.send(sock, {"do": "arm", "role": role, "trace": {"name": point, "act": "kill"}})
        while fds.receive(sock)[0]["event"] != "armed":
            pass
    serve_anew(here, image, LARGE)
    await_(lambda: live_with(LARGE), f"the device to grow: {export()}")
    rows = {row["role"]: row for row in ask(GADGET, "watchdog", "status")["processes"]}
    assert "signal 9" in rows[role]["last_exit"], "it was killed on the way"
