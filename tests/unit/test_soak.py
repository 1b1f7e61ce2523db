"""The verdict of a long run over memory and descriptors of each role (tests/soak/curves.py)."""

from tests.soak.curves import DESCRIPTORS_GROWTH, MEMORY_GROWTH, SETTLED, WINDOW, Sample, judged, table, verdict

MIB = 1 << 20


def curve(last_memory: int = 0, last_descriptors: int = 0, count: int = 2 * WINDOW) -> list[Sample]:
    """Settled at 10 MiB and 20 descriptors, then, in the last window, more by that much."""
    flat = [Sample(10 * MIB, 20)] * (SETTLED + count - WINDOW)
    return flat + [Sample(10 * MIB + last_memory, 20 + last_descriptors)] * WINDOW


def test_what_does_not_grow_passes() -> None:
    assert verdict({"gadget usb": curve()}) == []


def test_growth_at_the_bound_passes_and_past_it_fails() -> None:
    assert verdict({"gadget usb": curve(MEMORY_GROWTH, DESCRIPTORS_GROWTH)}) == []
    [memory] = verdict({"gadget usb": curve(MEMORY_GROWTH + 1)})
    assert memory.startswith("gadget usb: memory grew by 16.0 MiB")
    [descriptors] = verdict({"host session": curve(0, DESCRIPTORS_GROWTH + 1)})
    assert descriptors.startswith("host session: open descriptors grew by 9")


def test_a_slow_leak_is_found_though_no_step_of_it_is_large() -> None:
    slow = [Sample(10 * MIB + n * MIB // 50, 20 + n // 50) for n in range(1000)]
    assert len(verdict({"gadget usb": slow})) == 2


def test_one_odd_sample_and_the_settling_decide_nothing() -> None:
    samples = [Sample(MIB, 1)] * SETTLED + curve()[SETTLED:]
    samples[-1] = Sample(900 * MIB, 900)
    assert verdict({"gadget usb": samples}) == []


def test_one_roles_growth_is_not_hidden_by_another() -> None:
    assert len(verdict({"gadget usb": curve(), "host usb": curve(17 * MIB)})) == 1


def test_a_short_run_gives_no_verdict_and_says_so() -> None:
    short = curve(99 * MIB, 99, 2 * WINDOW - 1)
    assert verdict({"gadget usb": short}) == []
    assert not judged({"gadget usb": short, "host usb": curve()})
    assert not judged({})
    assert judged({"gadget usb": curve()})


def test_the_table_tells_now_start_and_most() -> None:
    told = table({"gadget usb": [Sample(MIB, 3), Sample(5 * MIB, 9), Sample(2 * MIB, 4)]})
    assert "2.0/1.0/5.0" in told
    assert "4/3/9" in told
