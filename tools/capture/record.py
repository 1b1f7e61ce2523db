"""`replug capture FILE`: a pcap file of all that passes between this host and its gadgets, until Ctrl-C or a bound.

The default is the buses on which a gadget is now, whole: after a pulled cable it comes back there at another address,
and its enumeration is part of the story. `-` is standard output, for `replug capture - | wireshark -k -i -`.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import Exit, Refused
from common.units import show_size, show_time
from tools.capture.pcap import Event, file_head, record
from tools.capture.usbmon import Usbmon

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ALL_BUSES = 0
_AT_ONCE = 64  # events in one write: 64 KiB each at most
_LOST_EVERY_S = 1.0  # what the kernel dropped is asked so often while events come: its counter is 32 bits


@dataclass(frozen=True, slots=True)
class Wish:
    """What of the traffic, and where it is to end."""

    file: str
    bus: int | None
    device: int | None
    max_bytes: int
    for_s: float | None


@dataclass
class Recording:
    """What went into the file so far, and whether the next event does."""

    size_bytes: int
    max_bytes: int
    wanted: Callable[[Event], bool]
    events: int = 0
    lost: int = 0
    full: bool = False

    def entry(self, event: Event, data: bytes) -> bytes:
        """Its bytes, or none: not wanted, or past the bound."""
        if self.full or not self.wanted(event):
            return b""
        entry = record(event, data)
        if self.size_bytes + len(entry) > self.max_bytes:
            self.full = True
            return b""
        self.size_bytes += len(entry)
        self.events += 1
        return entry


def capture(wish: Wish) -> int:
    """Until Ctrl-C, `for_s`, or a full file; says at the end what is in it."""
    buses, what = _buses(wish)
    with contextlib.ExitStack() as stack:
        wakeup = stack.enter_context(_ends())
        mon = Usbmon(min(buses) if len(buses) == 1 else _ALL_BUSES)
        stack.callback(mon.close)
        out = _opened(wish.file, stack)
        _at_once()
        recording = Recording(len(file_head()), wish.max_bytes, _wanted(buses, wish.device))
        began = time.monotonic()
        _write(out, file_head())
        _say(f"capture: {what}, to {wish.file}, at most {show_size(wish.max_bytes)}: Ctrl-C ends it")
        with contextlib.suppress(BrokenPipeError):  # whoever looked at it has seen enough
            _record(mon, out, recording, wakeup, None if wish.for_s is None else began + wish.for_s)
    _say(_summary(recording, wish, time.monotonic() - began))
    return Exit.DONE


def _at_once() -> None:
    """Before all others from here on: usbmon's ring holds twenty frames, and those who fill it want the processor too.

    Without the right to it (CAP_SYS_NICE) the capture is taken as well as it can be, and what was lost is told.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def _record(mon: Usbmon, out: int, recording: Recording, wakeup: int, ends: float | None) -> None:
    poll, looked = select.poll(), 0.0
    poll.register(mon.fd, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while not recording.full and (ends is None or time.monotonic() < ends):
        ready = poll.poll(None if ends is None else max(0.0, ends - time.monotonic()) * 1000)
        if any(fd == wakeup for fd, _ in ready):
            break
        _take(mon, out, recording, _AT_ONCE)
        if time.monotonic() - looked > _LOST_EVERY_S:
            recording.lost, looked = recording.lost + mon.stats()[1], time.monotonic()
    queued, lost = mon.stats()
    recording.lost += lost
    _take(mon, out, recording, queued)  # what had happened by then, and no more: the bus may never be idle


def _take(mon: Usbmon, out: int, recording: Recording, most: int) -> None:
    parts = []
    for _ in range(most):
        taken = mon.take()
        if taken is None:
            break
        parts.append(recording.entry(*taken))
    _write(out, b"".join(parts))


def _buses(wish: Wish) -> tuple[set[int], str]:
    """Which, and how to tell it. Without a wish: where gadgets are."""
    if wish.bus is not None:
        device = f", device {wish.device}" if wish.device is not None else ""
        return {wish.bus}, f"bus {wish.bus}{device}"
    if wish.device is not None:
        raise Refused(f"capture: --device {wish.device}: on which bus: give --bus N")
    from host.session.finder import find

    gadgets = find(None)
    if not gadgets:
        raise Refused("capture: no gadget is on any bus: plug it in, or say where it will come with --bus N (0: all)")
    names = ", ".join(f"{gadget.serial or gadget.place} on bus {gadget.bus}" for gadget in gadgets)
    return {gadget.bus for gadget in gadgets}, names


def _wanted(buses: set[int], device: int | None) -> Callable[[Event], bool]:
    def wanted(event: Event) -> bool:
        return (_ALL_BUSES in buses or event.bus in buses) and (device is None or event.device == device)

    return wanted


def _opened(file: str, stack: contextlib.ExitStack) -> int:
    if file == "-":
        if sys.stdout.isatty():
            raise Refused("capture: -: standard output is a terminal: pipe it into 'wireshark -k -i -', or name a file")
        return sys.stdout.fileno()
    if Path(file).is_dir():
        raise Refused(f"{file}: is a directory: name a file")
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)  # it holds what the disks hold
    stack.callback(os.close, fd)
    return fd


def _write(out: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]


@contextlib.contextmanager
def _ends() -> Iterator[int]:
    """A descriptor that is readable once we are to end; the file then ends with a whole record."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = {number: signal.signal(number, lambda *_: None) for number in _ENDS}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _summary(recording: Recording, wish: Wish, took_s: float) -> str:
    lost = f", {recording.lost} lost: the bus was faster than this machine" if recording.lost else ""
    size = show_size(recording.size_bytes)
    full = ": full: more fits with --max-size" if recording.full else ""
    return f"capture: {wish.file}: {recording.events} events in {show_time(took_s)}, {size}{lost}{full}"


def _say(text: str) -> None:
    print(f"replug: {text}", file=sys.stderr, flush=True)
