"""The one loop of a role: sockets, file descriptors and timers in, calls out. Single-threaded.

Threads (host USB transfers, writes of a source) hand their results over with `post`, which wakes the loop by an
eventfd. Handlers must not block. An idle loop sleeps until the next timer.
"""

import heapq
import itertools
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

Handler = Callable[[], None]


@dataclass(order=True)
class Timer:
    """One future call. `cancel` makes it do nothing."""

    due: float
    order: int
    handler: Handler | None = field(compare=False)

    def cancel(self) -> None:
        self.handler = None


class Loop:
    """Run handlers until `stop(code)`."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[object, Handler] = {}
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._posted: deque[Handler] = deque()
        self._before_wait: list[Handler] = []
        self._code: int | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, self._run_posted)

    @staticmethod
    def now() -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def watch(self, source: "zmq.Socket[bytes] | int", handler: Handler, events: int = zmq.POLLIN) -> None:
        """Call `handler` whenever `source` (a ZeroMQ socket or an fd) is ready. Level-triggered."""
        self._poller.register(source, events)
        self._handlers[source] = handler

    def unwatch(self, source: "zmq.Socket[bytes] | int") -> None:
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def after(self, delay_s: float, handler: Handler) -> Timer:
        timer = Timer(self.now() + delay_s, next(self._order), handler)
        heapq.heappush(self._timers, timer)
        return timer

    def every(self, interval_s: float, handler: Handler) -> None:
        """Call `handler` each `interval_s`, the first time after one interval. Missed beats are not made up for."""

        def again() -> None:
            self.after(interval_s, again)
            handler()

        self.after(interval_s, again)

    def before_wait(self, handler: Handler) -> None:
        """Call `handler` each time before the loop sleeps: the place to send what the handlers have gathered."""
        self._before_wait.append(handler)

    def post(self, handler: Handler) -> None:
        """From any thread: run `handler` in the loop."""
        self._posted.append(handler)
        os.eventfd_write(self._wake, 1)

    def stop(self, code: int = 0) -> None:
        if self._code is None:
            self._code = code

    def run(self) -> int:
        """Until stop(); returns its code."""
        while self._code is None:
            for handler in self._before_wait:
                handler()
            if self._code is not None:
                break
            for source, _ in self._poller.poll(self._timeout_ms()):
                handler_of = self._handlers.get(source)
                if handler_of is not None:
                    handler_of()
            self._run_timers()
        return self._code

    def _timeout_ms(self) -> int | None:
        while self._timers and self._timers[0].handler is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0, int((self._timers[0].due - self.now()) * 1000) + 1)

    def _run_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if timer.handler is not None:
                timer.handler()

    def _run_posted(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._posted)):
            self._posted.popleft()()
