"""How long the host's usb says that Requests waited, and what the commands make of it."""

from typing import Any

import pytest

from common import limits
from host.usb.waits import WINDOW_S, Wait, Waits
from tools.cli.pause import Ages, Pause, of_usb

Status = dict[str, float | bool]
LATER = limits.ASKED_AGAIN_S * 2


def wait() -> Wait:
    """Of an export that is in use for long, at 100.0."""
    one = Wait(0.0)
    one.in_force(50.0)
    one.status(100.0)
    one.status(100.0)
    return one


def told(longest_ms: float = 0.0, present_ms: float = 0.0, known: bool = True) -> Status:
    return {"longest_ms": longest_ms, "present_ms": present_ms, "known": known}


def test_a_wait_is_from_the_last_response_or_the_first_request_to_the_next_response() -> None:
    one = wait()
    one.arrived(100.1)
    one.arrived(100.2)
    assert one.status(100.25) == told(present_ms=150.0)
    one.answered(100.3)
    assert one.status(100.4) == told(longest_ms=200.0, present_ms=100.0)
    one.answered(100.4)
    assert one.status(100.5) == told(longest_ms=200.0), "nothing is here, and nothing waits"
    one.arrived(100.6)
    one.answered(100.65)
    assert one.status(100.7) == told(longest_ms=200.0)


def test_the_longest_is_forgotten_after_two_windows() -> None:
    one = wait()
    one.arrived(100.1)
    one.answered(100.3)
    assert one.status(100.3 + WINDOW_S) == told(longest_ms=200.0)
    assert one.status(100.3 + 2 * WINDOW_S) == told()


def test_what_is_asked_for_again_has_waited_since_the_last_response() -> None:
    one = wait()
    one.arrived(100.1)
    one.lost(100.2)
    assert one.status(100.3) == told(present_ms=200.0, known=False)
    one.in_force(100.5)
    one.arrived(100.51)
    one.answered(100.6)
    assert one.status(100.6) == told(longest_ms=500.0)


def test_what_comes_at_once_after_a_lost_link_has_waited_since_it_was_lost() -> None:
    one = wait()
    one.lost(100.2)
    one.arrived(100.5)  # before session has said that it is online
    one.answered(100.6)
    assert one.status(100.6) == told(longest_ms=400.0)


def test_what_comes_later_has_not_waited() -> None:
    one = wait()
    one.arrived(100.1)
    one.lost(100.2)
    one.in_force(100.5)
    assert one.status(100.5 + limits.ASKED_AGAIN_S) == told(present_ms=400.0 + limits.ASKED_AGAIN_S * 1000, known=False)
    one.arrived(100.5 + LATER)
    one.answered(100.6 + LATER)
    assert one.status(100.6 + LATER) == told(longest_ms=100.0)


def test_a_link_lost_twice_is_one_wait_and_a_second_word_of_force_begins_nothing() -> None:
    one = wait()
    one.arrived(100.1)
    one.lost(100.2)
    one.in_force(100.3)
    one.lost(100.31)
    one.in_force(100.5)
    one.arrived(100.51)
    one.in_force(100.52)
    one.answered(100.6)
    assert one.status(100.6) == told(longest_ms=500.0)


def test_an_answer_without_a_request_is_nothing() -> None:
    one = wait()
    one.answered(100.1)
    one.arrived(100.2)
    one.lost(100.3)
    one.answered(100.4)  # of before
    assert one.status(100.4) == told(present_ms=200.0, known=False)


def test_a_successor_counts_from_its_birth_but_not_when_its_first_link_comes_much_later() -> None:
    for attached, waited in ((10.1, 200.0), (10.0 + limits.ATTACH_S, 100.0)):
        now = 10.0
        waits = Waits(lambda: now)  # noqa: B023
        now = attached
        waits.offer([7], [])
        now = attached + 0.1
        waits.arrived(7)
        waits.answered(7)
        waits.arrived(8)  # not ours
        assert waits.status(7) == told(longest_ms=waited)


def test_an_export_that_is_offered_again_begins_anew_only_if_it_was_forgotten() -> None:
    waits = Waits(lambda: 10.0)
    waits.offer([7, 8], [])
    waits.in_force()
    waits.arrived(7)
    waits.arrived(8)
    waits.offer([7, 8], [8])
    assert [waits.status(number)["known"] for number in (7, 8)] == [True, False]
    waits.lost()
    assert waits.status(7)["known"] is False


@pytest.mark.parametrize(
    ("waits", "before_ms", "pause"),
    [
        ([told()], 300, Pause(0.0)),
        ([], 300, Pause(0.0)),
        ([told(longest_ms=50), told(longest_ms=20)], 0, Pause(50.0)),
        ([told(longest_ms=50)], 300, Pause(350.0)),
        ([told(longest_ms=5, present_ms=10)], 0, Pause(10.0)),  # it began after the successor was ready
        ([told(longest_ms=5, present_ms=11), told()], 0, Pause(11.0, over=False)),
        ([told(present_ms=1100)], 0, Pause(1100.0, over=False)),
        ([told(present_ms=1101)], 0, Pause(1101.0, over=False, ours=False)),  # long before the command
        ([told(present_ms=1101), told(present_ms=11)], 0, Pause(1101.0, over=False)),
    ],
)
def test_what_a_command_makes_of_it(waits: list[Any], before_ms: float, pause: Pause) -> None:
    assert of_usb(waits, before_ms, Ages(ready_ms=10, given_ms=100)) == pause


def test_what_is_not_known_yet_is_looked_at_again_and_is_not_told_as_a_number() -> None:
    pause = of_usb([told(), told(present_ms=5000.0, known=False)], 0, Ages(10, 100))
    assert not pause.over and pause.ours
    assert pause.told().startswith("; the link is not online yet: ")


def test_the_words() -> None:
    assert Pause(0.0).told() == "; no I/O was under way"
    assert Pause(61.0).told() == "; I/O waited for 61 ms at most"
    assert Pause(2400.0, over=False).told() == "; I/O has waited for 2.4 s and still does: see 'replug status'"
    assert Pause(None).told() == ""
