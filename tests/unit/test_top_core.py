"""What `replug top` makes of looks and keys, without a terminal."""

from typing import Any

import pytest

from tools.top.core import KEYS, Mode, Order, Top, age
from tools.top.events import events
from tools.top.layout import MIN_HEIGHT, MIN_WIDTH, draw, sparkline

Document = dict[str, Any]


def process(role: str, **fields: Any) -> Document:
    row = {"role": role, "pid": 100, "generation": 1, "state": "running", "since": "", "restarts": 0, "last_exit": ""}
    return {**row, "pause_ms": None, "rss_bytes": 1 << 24, "cpu_percent": 1.0, "reason": "", **fields}


def export(name: str = "disk", read_bytes: int = 0, errors: int = 0, **fields: Any) -> Document:
    counters = dict.fromkeys(("write_count", "flush_count", "discard_count", "write_bytes"), 0)
    counters |= {"read_count": read_bytes // 4096, "read_bytes": read_bytes, "error_count": errors}
    row = {"name": name, "id": f"id-{name}", "role": f"queue.{name}", "device": "/dev/ublkb0", "size_bytes": 1 << 30}
    row |= {"block_size": 4096, "read_only": False, "state": "live", "reason": "", "in_flight": 0}
    return {**row, "counters": counters, "latency_ms": {"p50": 2.1, "p99": 9.8}, **fields}


def document(*processes: Document, exports: tuple[Document, ...] = (), **fields: Any) -> Document:
    rows = list(processes) or [process("watchdog"), process("usb"), process("queue.disk", last_exit="")]
    whole = {"version": 1, "side": "gadget", "instance": "default", "state": "healthy", "reason": ""}
    whole |= {"session_id": "0x5f3a000000000000", "link": {"state": "online", "peer": "v1"}, "processes": rows}
    return {**whole, "exports": list(exports), **fields}


DOWN = document(state="down", reason="nothing runs", session_id=None, link={"state": "absent"}) | {"processes": []}


def top_with(*looks: Document) -> Top:
    top = Top("gadget:default")
    for n, look in enumerate(looks):
        top.looked(look, float(n), "12:00:00")
    return top


def screen(top: Top, width: int = 80, height: int = 24, now: float = 10.0) -> list[str]:
    return ["".join(text for text, _ in line) for line in draw(top.view(now, 0.0), width, height)]


# -- rates -----------------------------------------------------------------------------------------------------------
def test_rates_are_the_differences_of_counters() -> None:
    top = top_with(document(exports=(export(read_bytes=0),)), document(exports=(export(read_bytes=40960),)))
    shown = top.view(1.0, 0.0).exports[0]
    assert (shown.read_bytes_s, shown.write_bytes_s, shown.iops) == (40960, 0, 10)
    assert shown.history == (None, 40960)


def test_a_successor_that_counts_from_zero_is_not_a_negative_rate() -> None:
    looks = [document(exports=(export(read_bytes=n),)) for n in (409600, 819200, 4096, 8192)]
    assert top_with(*looks).view(1.0, 0.0).exports[0].history == (None, 409600, None, 4096)


def test_a_process_that_does_not_answer_leaves_a_dot_in_the_sparkline() -> None:
    silent = export()
    del silent["counters"]
    looks = [document(exports=(e,)) for e in (export(read_bytes=0), export(read_bytes=4096), silent)]
    top = top_with(*looks)
    assert sparkline(top.view(1.0, 0.0).exports[0].history, 10) == "·█·"


def test_a_sparkline_shows_the_newest_and_never_hides_a_small_rate() -> None:
    assert sparkline([9.0, 0.0, 0.01, 4.0, 8.0], 4) == " ▁▄█"


# -- events ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (document(), document(), []),
        (
            document(process("usb")),
            document(process("usb", generation=2, restarts=1, last_exit="killed by signal 9", pause_ms=61)),
            ["usb killed by signal 9, respawned in 61 ms"],
        ),
        (
            document(process("usb")),
            document(process("usb", generation=9, restarts=3, last_exit="exit 10", pause_ms=61)),
            ["usb exit 10, respawned in 61 ms (3 times)"],
        ),
        (
            document(process("usb")),
            document(process("usb", state="stuck", reason="not dead after 10 s")),
            ["usb stuck: not dead after 10 s"],
        ),
        (
            document(process("usb")),
            document(process("usb", generation=2, pid=101, state="starting", last_exit="exit 10", reason="exit 10")),
            ["usb exit 10, its successor is starting"],
        ),
        (
            document(process("usb", state="starting", last_exit="exit 10")),
            document(process("usb", last_exit="exit 10", pause_ms=61)),
            ["usb running, respawned in 61 ms"],
        ),
        # a new watchdog finds what ran all the time: nothing has happened to it
        (document(process("usb", pause_ms=9)), document(process("usb", state="starting", pause_ms=9)), []),
        (document(process("usb", state="starting", pause_ms=9)), document(process("usb", pause_ms=9)), []),
        (document(process("a"), process("b")), document(process("a"), process("c")), ["c is new", "b is gone"]),
        (
            document(),
            document(link={"state": "parked", "reason": "no STATUS for 3 s"}, state="degraded"),
            ["side degraded", "link parked: no STATUS for 3 s"],
        ),
        (
            document(exports=(export(),)),
            document(exports=(export(state="parked", reason="link parked", in_flight=3),)),
            ["export disk parked: link parked, 3 I/Os wait"],
        ),
        (
            document(exports=(export(),)),
            document(exports=(export(state="recovering", reason="usb is starting", in_flight=1),)),
            ["export disk recovering: usb is starting, 1 I/O waits"],
        ),
        (document(exports=(export(),)), document(exports=(export(errors=2),)), ["export disk: 2 I/Os failed"]),
        (document(exports=(export(),)), document(), ["export disk is gone"]),
        (document(), document(exports=(export(),)), ["export disk is new: live"]),
        (document(), DOWN, ["side down: nothing runs"]),
        (
            document(),
            document(session_id="0x0000000000000007"),
            ["session 0x0000000000000007 is new: the gadget lost its state, or another one came"],
        ),
        # session does not answer: its exports and link are not gone, but not known
        (
            document(exports=(export(),)),
            document(session_id=None, link={"state": "absent"}, state="degraded", reason="session: no answer"),
            ["side degraded: session: no answer"],
        ),
    ],
)
def test_what_differs_is_told(before: Document, after: Document, lines: list[str]) -> None:
    assert events(before, after) == lines


def test_the_first_look_tells_nothing() -> None:
    assert events(None, document()) == []


def test_a_role_replaced_while_the_watchdog_was_away_is_told() -> None:
    away = document(state="degraded", reason="watchdog: no process") | {"processes": []}
    back = document(process("usb", generation=2, restarts=1, last_exit="killed by signal 9", pause_ms=9))
    top = top_with(document(process("usb")), away, back)
    told = "\n".join(top.view(3.0, 0.0).events)
    assert "side degraded: watchdog: no process" in told
    assert "side healthy" in told
    assert told.count("usb killed by signal 9, respawned in 9 ms") == 1


# -- what is shown ---------------------------------------------------------------------------------------------------
def test_a_side_that_is_gone_keeps_its_rows_and_says_how_old_they_are() -> None:
    top = top_with(document(exports=(export(),)), DOWN)
    text = screen(top, now=7.0)
    assert "● down" in text[0]
    assert text[1].strip() == "nothing runs (below: what was known 7s ago)"
    assert any(line.startswith(" disk") for line in text)


@pytest.mark.parametrize("width", [MIN_WIDTH, 80, 81, 200])
@pytest.mark.parametrize("height", [MIN_HEIGHT, 24, 25, 60])
@pytest.mark.parametrize("count", [0, 1, 3, 32])
@pytest.mark.parametrize("mode_keys", ["", "?", "l", "k"])
def test_no_line_is_too_wide_and_none_too_many(width: int, height: int, count: int, mode_keys: str) -> None:
    exports = tuple(export(f"a-rather-long-name-of-an-export-{n}") for n in range(count))
    processes = [process("watchdog"), *(process(e["role"], last_exit="killed by signal 9") for e in exports)]
    top = top_with(document(*processes, exports=exports))
    top.logged(["x" * 500, "tab\there \x1b[31mred"] * 100)
    for key in mode_keys:
        top.key(key)
    text = screen(top, width, height)
    assert len(text) == height
    assert max(map(len, text)) <= width
    assert all(line.isprintable() for line in text)


def test_80x24_shows_two_exports_with_their_sparklines_every_process_and_two_events() -> None:
    names = ("watchdog", "spawner", "twin", "usb", "queue.a", "queue.b", "session")
    exports = (export("a"), export("b", state="parked", reason="link parked since 12:00", oldest_ms=3000))
    top = top_with(document(*map(process, names), exports=exports))
    top.note("first", "12:00:01")
    top.note("second", "12:00:02")
    text = "\n".join(screen(top))
    for name in names:
        assert f" {name} " in text or f"▶{name} " in text
    assert "link parked since 12:00, I/O waits for 3.0s" in text
    assert "12:00:01 first\n 12:00:02 second" in text
    assert "2.1ms 9.8ms" in text


def test_for_how_long_io_waits_is_never_what_is_cut() -> None:
    parked = export(state="parked", reason="because " * 20, oldest_ms=7_800_000)
    line = next(line for line in screen(top_with(document(exports=(parked,)))) if "because" in line)
    assert len(line) == 80 and line.endswith("…, I/O waits for 2h10m")


def test_the_link_of_a_side_that_is_down_is_not_that_of_before() -> None:
    top = top_with(document(), DOWN)
    assert screen(top)[0].startswith(" replug gadget:default  ● down  link absent")


def test_what_does_not_fit_is_said() -> None:
    exports = tuple(export(f"e{n}") for n in range(30))
    text = "\n".join(screen(top_with(document(exports=exports))))
    shown = sum(f" e{n} " in text for n in range(30))
    assert f"… {30 - shown} more: 'replug status' shows all" in text


def test_the_chosen_process_is_always_in_sight() -> None:
    rows = [process(f"queue.{n}") for n in range(32)]
    top = top_with(document(*rows))
    for _ in range(40):
        top.key("down")
        assert any(line.startswith(f"▶{top.selected} ") for line in screen(top))
    assert top.selected == "queue.31"


# -- keys ------------------------------------------------------------------------------------------------------------
def test_every_key_in_every_mode_does_what_the_table_says_and_nothing_else() -> None:
    for mode in Mode:
        for key in {key for _, key in KEYS} | {"x", "\n"}:
            top = top_with(document())
            for reach in {Mode.MAIN: "", Mode.HELP: "?", Mode.LOG: "l", Mode.CONFIRM: "k"}[mode]:
                top.key(reach)
            after, order = KEYS.get((mode, key), (mode, None))
            assert (top.key(key), top.view(0.0, 0.0).mode) == (order, after)


def test_a_kill_is_asked_about_and_an_order_is_about_the_chosen_one() -> None:
    top = top_with(document())
    assert top.selected == "queue.disk"
    top.key("up")
    assert top.key("k") is None
    assert screen(top)[-1] == " kill usb with SIGKILL?  y yes  n no"
    assert top.key("y") is Order.KILL
    assert top.selected == "usb"


def test_no_order_is_given_about_nobody() -> None:
    top = Top("gadget:default")
    for key in "rdlky":
        assert top.key(key) is None
        top.key("escape")
    assert top.key("q") is Order.QUIT


@pytest.mark.parametrize(("wall", "text"), [(1767225614.9, "14s"), (1767225600.0, "0s"), (1767225500.0, "0s")])
def test_ages(wall: float, text: str) -> None:
    assert age("2026-01-01T00:00:00.000+00:00", wall) == text
    assert age("", wall) == age(None, wall) == ""


# -- the head --------------------------------------------------------------------------------------------------------
def test_the_head_tells_for_how_long_the_side_is_up_and_leaves_out_first_what_matters_least() -> None:
    link = {"state": "online", "since": "1970-01-01T00:00:00+00:00", "peer": "v1", "speed": "high-speed"}
    top = top_with(document(since="1969-12-31T22:00:00+00:00", link=link))
    assert screen(top, 80)[0] == " replug gadget:default  ● healthy  link online 0s v1 high-speed  up 2h00m"
    assert screen(top, 100)[0].endswith("  up 2h00m  session 5f3a…")
    assert screen(top, 70)[0].endswith("high-speed")


def test_a_reason_that_is_longer_than_the_screen_ends_with_an_ellipsis() -> None:
    long = document(state="degraded", reason="because " * 20)
    line = screen(top_with(long), 80)[1]
    assert len(line) == 80 and line.endswith("…")
    fits = document(state="degraded", reason="x" * 79)
    assert screen(top_with(fits), 80)[1] == " " + "x" * 79
