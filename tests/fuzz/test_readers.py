"""What reads bytes from outside its own process: good bytes, hurt, give a named error or a meaning, and nothing else.

Of messages bytes are cut, flipped, doubled and inserted; of files values are replaced by any other that JSON can say.
More examples: `.venv/bin/python -m pytest tests/fuzz --hypothesis-profile=long`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.envelope import Envelope, Kind
from bus.runtime import Runtime, Side, read_record, take_name
from common.errors import Refused, WireError
from common.wire import ConfigExports, ExportRecord, Ident, Op, Request, Response, Status
from common.wire_v1 import (
    HEAD_BYTES,
    RECORD_BYTES,
    ConfigV1,
    ExportV1,
    Hello,
    Record,
    pack_head,
    pack_record,
    unpack_frame,
)
from gadget.session import parking
from gadget.session.parking import Wish
from gadget.session.state import Device, State
from host.session.eject import Ejection, load_ejection, save_ejection
from host.session.export import Export
from host.session.served import Served, load_served, save_served, served_path
from tests.fuzz.hurt import JSON, hurt, places, put
from tools.supervise.memory import History, Memory, memory_path
from tools.supervise.plan import Plan, gadget_plan, plan_path

EXPORT = ExportRecord(0xA, 512, 1 << 20)
RECORD = Record(Op.WRITE, 0, 1, 0xA, 0, 1, 0, 512)
FRAME = pack_head(7, 3, 1, HEAD_BYTES + RECORD_BYTES + 512) + pack_record(RECORD, 0, 512) + bytes(512)

MESSAGES: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "v0 Ident": (Ident().encode(), Ident.decode),
    "v0 Status": (Status(True, 2, 5).encode(), Status.decode),
    "v0 ConfigExports": (ConfigExports((EXPORT, replace(EXPORT, export_id=11))).encode(), ConfigExports.decode),
    "v0 Request": (Request(Op.READ, 1, 0xA, 0, 1).encode(), Request.decode),
    "v0 Response": (Response(Op.READ, 0, 1, 0xA, 0, 1).encode(), Response.decode),
    "v1 Hello": (Hello(65536).encode(), Hello.decode),
    "v1 Config": (ConfigV1(9, bytes(16), (ExportV1(EXPORT, name="disk"),)).encode(), ConfigV1.decode),
    "v1 frame": (FRAME, lambda data: unpack_frame(data, 7, 3)),
    "envelope": (Envelope(Kind.NOTE, "usb", 1, 2, {"note": "link", "n": [1, 2]}).encode(), Envelope.decode),
    "state file": (State(5, (Device("a", EXPORT, 0, label="disk"),), (0xA,)).encode(), State.decode),
    "parking file": (parking.encode({0xA: Wish("ab", 5.0, 1.0, "why")}), parking.decode),
}


@pytest.mark.parametrize("name", MESSAGES)
@given(draw=st.data())
@settings(deadline=None)
def test_a_hurt_message_is_a_wire_error_or_a_message(name: str, draw: st.DataObject) -> None:
    good, decode = MESSAGES[name]
    decode(good)
    try:
        decode(draw.draw(hurt(good)))
    except WireError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, "one line that a log can hold"


DEEP = "[" * 100_000


def write_state(runtime: Runtime) -> Path:
    path = runtime.root / "state.json"
    path.write_bytes(MESSAGES["state file"][0])
    return path


def write_parking(runtime: Runtime) -> Path:
    path = runtime.root / "parking.json"
    path.write_bytes(MESSAGES["parking file"][0])
    return path


def write_memory(runtime: Runtime) -> Path:
    roles = gadget_plan("default", {"udc": "a"}, {}).roles
    Memory(roles[:1], roles[1:], False, {"usb": History(3, "signal 9", 5)}).save(runtime)
    return memory_path(runtime)


def write_plan(runtime: Runtime) -> Path:
    gadget_plan("default", {"udc": "a"}, {"queue_depth": 8}).save(runtime)
    return plan_path(runtime)


SOURCE = {"path": "/a", "export_id": 10, "block_size": 512, "size_bytes": 1 << 20, "read_only": False, "name": "disk"}


def write_served(runtime: Runtime) -> Path:
    assert Export.of(SOURCE).name == "disk"
    save_served(runtime, Served((SOURCE,), ()))
    return served_path(runtime)


def write_ejection(runtime: Runtime) -> Path:
    save_ejection(runtime, Ejection(frozenset({10}), frozenset({10})))
    return next(runtime.root.glob("eject*.json"))


def write_record(runtime: Runtime) -> Path:
    runtime.record_path("usb").parent.mkdir(exist_ok=True)
    os.close(take_name(runtime, "usb", 7))
    return runtime.record_path("usb")


FILES: dict[str, tuple[Callable[[Runtime], Path], Callable[[Runtime], object]]] = {
    "state": (write_state, lambda runtime: State.decode((runtime.root / "state.json").read_bytes())),
    "parking": (write_parking, lambda runtime: parking.decode((runtime.root / "parking.json").read_bytes())),
    "the watchdog's memory": (write_memory, Memory.load),
    "plan": (write_plan, Plan.load),
    "served": (write_served, lambda runtime: load_served(runtime, [SOURCE])),
    "process record": (write_record, lambda runtime: read_record(runtime, "usb")),
    "ejected": (write_ejection, load_ejection),
}


@pytest.mark.parametrize("name", FILES)
@given(draw=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_with_any_other_value_in_it_is_refused_or_read(name: str, draw: st.DataObject, tmp_path: Path) -> None:
    runtime = Runtime(Side.GADGET, base=tmp_path)
    runtime.root.mkdir(exist_ok=True)
    write, read = FILES[name]
    path = write(runtime)
    read(runtime)
    good = json.loads(path.read_bytes())
    text = json.dumps(put(good, draw.draw(st.sampled_from(places(good))), draw.draw(JSON)))
    path.write_text(draw.draw(st.sampled_from([text, text, text, text[: len(text) // 2], text + text])))
    try:
        read(runtime)
    except (WireError, Refused) as error:
        assert "\n" not in str(error)


def repr_of(content: str | bytes) -> str:
    return repr(content[:12])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [DEEP, '{"a":' * 50_000, "Infinity", "\x00", b"\xed\xa0\x80"], ids=repr_of)
def test_a_file_of_nonsense_is_refused_or_empty(name: str, content: str | bytes, tmp_path: Path) -> None:
    runtime = Runtime(Side.GADGET, base=tmp_path)
    runtime.root.mkdir(exist_ok=True)
    write, read = FILES[name]
    path = write(runtime)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        read(runtime)
    except (WireError, Refused) as error:
        assert "\n" not in str(error)
