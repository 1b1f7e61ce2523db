"""The one loop of a role: sockets, file descriptors and timers in, calls out. Single-threaded.

Threads (a source's reads and writes, opening a USB device) hand their results over with `post`, which wakes the loop by
an eventfd. Handlers must not block. An idle loop sleeps until the next timer.

A ZeroMQ socket is waited for by its descriptor (ZMQ_FD), which says only that something has happened inside: a message
may be there without it, because sending takes in what has arrived, too. So whoever has sent, or has left messages
unread, calls `stir`, and the socket itself is asked (ZMQ_EVENTS) before the loop sleeps.
"""

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

Handler = Callable[[], None]
_AT_ONCE = 32  # descriptors told of by one poll: Python allocates room for 1023 else, each time
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)  # as flags of an Enum they cost more than the question itself


def has_message(socket: "zmq.Socket[bytes]") -> bool:
    """Can a message be read now? (ZMQ_EVENTS: the question also takes in what has arrived.)"""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


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
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}  # by fd
        self._stirred: set[zmq.Socket[bytes]] = set()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._posted: deque[Handler] = deque()
        self._before_wait: list[Handler] = []
        self._code: int | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, self._run_posted)

    now = staticmethod(time.monotonic)  # monotonic seconds

    def watch(self, source: "zmq.Socket[bytes] | int", handler: Handler, events: int = zmq.POLLIN) -> None:
        """Call `handler` whenever `source` (a ZeroMQ socket or an fd) is ready. Level-triggered.

        `events` of an fd: POLLIN or POLLOUT; errors and hang-ups always count. A socket is watched for POLLIN only, and
        its handler reads all there is, or calls `stir`.
        """
        if isinstance(source, int):
            self._epoll.register(source, select.EPOLLOUT if events == zmq.POLLOUT else select.EPOLLIN)
            self._handlers[source] = handler
            return

        def told(socket: "zmq.Socket[bytes]" = source) -> None:
            self._stirred.discard(socket)
            handler()

        fd = source.fileno()
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = told
        self._stirred.add(source)

    def announce(self, fd: int, handler: Handler) -> None:
        """Call `handler` each time something is added to the eventfd `fd`, which nobody needs to read.

        Edge-triggered: the handler takes all that there is to take.
        """
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        self._handlers[fd] = handler

    def unwatch(self, source: "zmq.Socket[bytes] | int") -> None:
        """Before the fd is closed."""
        fd = source if isinstance(source, int) else source.fileno()
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if not isinstance(source, int):
                self._stirred.discard(source)

    def stir(self, socket: "zmq.Socket[bytes]") -> None:
        """Something was sent on a watched socket, or messages were left in it: ask it before the loop sleeps."""
        self._stirred.add(socket)

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

    def beat(self, interval_s: float, handler: Handler) -> None:
        """Call `handler` at the multiples of `interval_s` of the monotonic clock: the same moments in all processes.

        Who hears the beats of many is then woken once for all of them.
        """

        def again() -> None:
            self.after(interval_s - self.now() % interval_s, again)
            handler()

        self.after(interval_s - self.now() % interval_s, again)

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
        """Until stop(); returns its code.

        The clock is read once in a turn, when its handlers have run: a timer may be late by what `before_wait` takes.
        """
        poll, handlers, timers, now = self._epoll.poll, self._handlers, self._timers, self.now()
        while self._code is None:
            for handler in self._before_wait:
                handler()
            if self._code is not None:
                break
            while timers and timers[0].handler is None:  # cancelled
                heapq.heappop(timers)
            timeout_s = max(timers[0].due - now, 0) if timers else None
            for fd, _ in poll(0 if self._stirred and self._unread() else timeout_s, _AT_ONCE):
                handler_of = handlers.get(fd)
                if handler_of is not None:
                    handler_of()
            if self._stirred:
                for socket in self._unread():
                    handlers[socket.fileno()]()  # nobody unwatches a socket
            now = self.now()
            if timers and timers[0].due <= now:
                self._run_timers(now)
        return self._code

    def _unread(self) -> list["zmq.Socket[bytes]"]:
        """Stirred sockets that have a message. The others are left to their descriptors."""
        unread = [socket for socket in self._stirred if has_message(socket)]
        self._stirred.clear()
        self._stirred.update(unread)
        return unread

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if timer.handler is not None:
                timer.handler()

    def _run_posted(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._posted)):
            self._posted.popleft()()
