"""What `replug top` draws for fixed states, cell by cell, at 80x24 and 120x40: tests/snapshots/top/states.

Live terminals, whose numbers nobody knows beforehand, are those of tests/chaos/test_top_kills.py. `REPLUG_SNAPSHOTS=1`
writes both anew: look at what has changed before it is committed.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tools.cli.document import faults
from tools.top.core import Top
from tools.top.layout import draw

KEPT = Path(__file__).parent.parent / "snapshots" / "top" / "states"
SIZES = ((80, 24), (120, 40))
NOW = datetime(2026, 1, 1, 12, 31, 18, tzinfo=UTC).timestamp()
LOOKS = 30  # seconds of history
MIB = 1 << 20
Document = dict[str, Any]


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(NOW - seconds, UTC).isoformat(timespec="milliseconds")


def process(n: int, role: str, **fields: Any) -> Document:
    row = {"role": role, "pid": 4700 + n, "generation": (8040 + n) * 100_000_000, "state": "running"}
    row |= {"since": ago(8040 - n), "restarts": 0, "last_exit": "", "pause_ms": None}
    return row | {"rss_bytes": (20 + n) * MIB, "cpu_percent": 1.5 * n} | fields


def counters(n: int, second: int) -> Document:
    """Of export n, which reads faster and slower in turn and writes a little."""
    reads = sum(200 + 90 * (at % 7) for at in range(second)) * (3 - n)
    counted = {"read_count": reads, "write_count": 30 * second, "flush_count": second, "discard_count": 0}
    return counted | {"read_bytes": reads * 16384, "write_bytes": 30 * second * 4096, "error_count": 0}


def export(n: int, name: str, role: str, second: int, **fields: Any) -> Document:
    row = {"name": name, "id": f"0x{0x4FEB21C0 + n:08x}", "role": role, "device": f"/dev/ublkb{n}"}
    row |= {"size_bytes": (8 << 30) >> 4 * n, "block_size": 4096, "read_only": False, "state": "live"}
    row |= {"in_flight": 14 >> n, "oldest_ms": 9, "counters": counters(n, second)}
    row |= {"latency_ms": {"p50": 2.1, "p99": 9.8}, "latency_log2_us": [0] * 27}
    return row | {"read_iops": 1.0, "write_iops": 1.0, "read_bytes_s": 1, "write_bytes_s": 1} | fields


def healthy(second: int) -> Document:
    """A gadget with two disks, the look of this second."""
    roles = ("watchdog", "spawner", "twin", "usb", "session", "queue.4feb21c0", "queue.4feb21c1")
    link = {"state": "online", "since": ago(7980), "peer": "v1", "speed": "high-speed", "epoch": "0x51"}
    exports = [export(n, name, roles[5 + n], second) for n, name in enumerate(("rootfs", "scratch"))]
    head = {"version": 1, "side": "gadget", "instance": "default", "time": ago(LOOKS - second), "since": ago(8040)}
    head |= {"state": "healthy", "session_id": "0x5f3a9d0000000001", "link": link}
    return head | {"processes": [process(n, role) for n, role in enumerate(roles)], "exports": exports}


def changed(document: Document, role: str = "", export_name: str = "", **fields: Any) -> Document:
    """With other fields in the row of that process or export; in the document itself if none is named."""
    key, name = ("processes", role) if role else ("exports", export_name)
    if not name:
        return {**document, **fields}
    rows = [{**row, **fields} if name in (row["role"], row.get("name")) else row for row in document[key]]
    return {**document, key: rows}


def restarting(document: Document) -> Document:
    """A queue was killed, and its successor is not ready."""
    why = "queue.4feb21c0 is starting since 12:31:17: killed by signal 9"
    dead = {"state": "starting", "since": ago(0.4), "pid": 5022, "restarts": 1, "last_exit": "killed by signal 9"}
    document = changed(document, role="queue.4feb21c0", **dead, generation=16080 * 100_000_000, rss_bytes=9 * MIB)
    silent = {"counters": counters(0, 0), "latency_ms": {"p50": None, "p99": None}, "oldest_ms": 400}
    document = changed(document, export_name="rootfs", state="recovering", reason=why, since=ago(0.4), **silent)
    return changed(document, state="degraded")


def restarted(document: Document) -> Document:
    """The same a second later."""
    dead = {"since": ago(0.9), "pid": 5022, "restarts": 1, "last_exit": "killed by signal 9", "pause_ms": 61}
    return changed(document, role="queue.4feb21c0", **dead, generation=16080 * 100_000_000)


def link_lost(document: Document) -> Document:
    """The host is gone, and two I/Os wait for it."""
    why = "link parked since 12:31:15: no STATUS for 3 s"
    for name in ("rootfs", "scratch"):
        stopped = {"counters": counters(int(name == "scratch"), LOOKS - 1), "latency_ms": {"p50": None, "p99": None}}
        waits = {"in_flight": 1, "oldest_ms": 3200}
        document = changed(document, export_name=name, state="parked", reason=why, since=ago(3), **stopped, **waits)
    link = {"state": "parked", "since": ago(3), "peer": "v1", "speed": "", "epoch": "", "reason": "no STATUS for 3 s"}
    return changed(document, state="degraded", link=link)


def parked(document: Document) -> Document:
    """The host has rebooted over writes that were not flushed: one export waits for the operator."""
    why = "the host has rebooted over 12.0M acknowledged and not flushed: they may be lost: `replug export resume` "
    why += "takes what the host has, `replug export fail` ends the device"
    waits = {"in_flight": 3, "oldest_ms": 65_000, "unflushed_bytes": 12 * MIB, "needs_operator": True}
    still = {"counters": counters(0, LOOKS - 1), "latency_ms": {"p50": None, "p99": None}}
    document = changed(document, export_name="rootfs", state="parked", reason=why, since=ago(65), **waits, **still)
    return changed(document, state="degraded")


def unwatched(document: Document) -> Document:
    """Nothing runs any more; what was known stays on the screen."""
    gone = {"processes": [], "exports": [], "session_id": None, "reason": "its supervision is dead: start it again"}
    link = {"state": "absent", "since": "", "peer": "", "speed": "", "epoch": ""}
    return changed(document, state="down", link=link, **gone)


STATES: dict[str, Callable[[Document], Document] | None] = {
    "healthy": None, "restarting": restarting, "restarted": restarted, "link-lost": link_lost, "parked": parked,
    "down": unwatched,
}  # fmt: skip


def screen(state: Callable[[Document], Document] | None, width: int, height: int) -> str:
    """After half a minute of good looks one of that state."""
    top, looks = Top("gadget:default"), [healthy(second) for second in range(LOOKS)]
    for second, document in enumerate([*looks, *([state(healthy(LOOKS))] if state else [])]):
        assert faults(document) == [], "as `replug status --json` is"
        top.looked(document, float(second), f"12:30:{48 + second}" if second < 12 else f"12:31:{second - 12:02}")
    lines = draw(top.view(LOOKS, NOW), width, height)
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


@pytest.mark.parametrize(("width", "height"), SIZES, ids=["80x24", "120x40"])
@pytest.mark.parametrize("name", STATES)
def test_a_state_is_drawn_as_it_was_when_somebody_looked_at_it(name: str, width: int, height: int) -> None:
    drawn, path = screen(STATES[name], width, height), KEPT / f"{name}-{width}x{height}.txt"
    if os.environ.get("REPLUG_SNAPSHOTS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn)
    assert drawn == path.read_text(), "REPLUG_SNAPSHOTS=1 writes it anew"
    assert len(drawn.splitlines()) == height and max(map(len, drawn.splitlines())) <= width


def test_every_kept_screen_is_of_a_state() -> None:
    kept = {path.stem for path in KEPT.iterdir()}
    assert kept == {f"{name}-{width}x{height}" for name in STATES for width, height in SIZES}
