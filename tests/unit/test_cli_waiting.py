"""What a command says while it waits: for what, since when, and for how long still (issue 5, item 9)."""

from tools.cli.eject import unwritten_bytes
from tools.cli.waiting import EVERY_S, FIRST_S, Waiting


def test_a_short_wait_is_no_news_and_a_long_one_is_told_now_and_then() -> None:
    waiting = Waiting()
    told = [(now / 10, line) for now in range(0, 150) if (line := waiting.line("usb (starting)", now / 10))]
    assert told == [
        (FIRST_S, "waiting for usb (starting), since 3s"),
        (FIRST_S + EVERY_S, "waiting for usb (starting), since 8s"),
        (FIRST_S + 2 * EVERY_S, "waiting for usb (starting), since 13s"),
    ]


def test_another_thing_to_wait_for_has_a_since_of_its_own() -> None:
    waiting = Waiting()
    assert waiting.line("usb", 0.0) is None
    assert waiting.line("the gadget", 10.0) is None
    assert waiting.line("the gadget", 13.5) == "waiting for the gadget, since 3s"


def test_what_shrinks_meanwhile_gives_an_estimate() -> None:
    waiting = Waiting()
    assert waiting.line("a flush", 0.0, 100 << 20) is None
    assert (
        waiting.line("a flush", 4.0, 60 << 20) == "waiting for a flush, since 4s: 60.0M left of 100.0M, about 6s more"
    )


def test_what_does_not_shrink_or_grows_gives_none() -> None:
    waiting = Waiting()
    waiting.line("a flush", 0.0, 10 << 20)
    assert waiting.line("a flush", 4.0, 10 << 20) == "waiting for a flush, since 4s: 10.0M left"
    assert waiting.line("a flush", 10.0, 20 << 20) == "waiting for a flush, since 10s: 20.0M left"
    assert waiting.line("a flush", 15.0, 10 << 20) == (
        "waiting for a flush, since 15s: 10.0M left of 20.0M, about 5s more"
    )


def test_what_a_flush_has_still_to_write_is_the_kernels_own_count() -> None:
    assert unwritten_bytes("MemTotal:   100 kB\nDirty:    12 kB\nWriteback:     4 kB\nWritebackTmp: 9 kB\n") == 16 << 10
    assert unwritten_bytes("") is None
