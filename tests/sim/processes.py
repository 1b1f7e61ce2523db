"""Processes: a loop of its own for each, death at any effect or between two, and threads that really block.

Copies: `kill -9` between two system calls (a process does nothing after it; what it has handed to a kernel stays),
SIGSTOP (nothing happens until SIGCONT), bus.loop.Loop's order of work, and the watchdog's rule that a successor is
forked only after its predecessor is dead (tests/unit/test_supervise_live.py, tests/e2e/test_recovery.py). A thread that
blocks in a kernel call is a greenlet that gives way there, so a run stays deterministic, and os.fork copies it whole.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from greenlet import getcurrent, greenlet

from bus.loop import Handler, Timer
from common.errors import Refused
from tests.sim.world import Killed, Waitable, World

BETWEEN_EFFECTS = STEP, STEP_OVER, THREAD_BEGINS, THREAD_STEP, JOB = (
    "a step",
    "the end of a step",
    "a thread's begin",
    "a thread's step",
    "a job",
)


class SimLoop:
    """bus.loop.Loop under virtual time: sources that are ready, then timers, then what `before_wait` asked for."""

    def __init__(self, process: "Process") -> None:
        self._process, self._world = process, process.world
        self._handlers: dict[Any, Handler] = {}
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._posted: deque[Handler] = deque()
        self._before_wait: list[Handler] = []
        self._planned: set[float] = set()

    def now(self) -> float:
        return self._world.now

    def watch(self, source: Any, handler: Handler, events: int = 0) -> None:
        waitable = self._waitable(source)
        self._handlers[waitable.number] = handler
        waitable.wakers.append(self._process.wake)
        if waitable.ready():
            self._process.wake()

    def announce(self, fd: int, handler: Handler) -> None:
        """As `watch`: a handler that takes all there is cannot tell them apart."""
        self.watch(fd, handler)

    def unwatch(self, source: Any) -> None:
        waitable = self._waitable(source)
        if self._handlers.pop(waitable.number, None) is not None:
            waitable.wakers.remove(self._process.wake)

    def stir(self, socket: Any) -> None:
        """Nothing to do: a socket of ours is ready whenever it has a message."""

    def _waitable(self, source: Any) -> Waitable:
        found = source.waitable if hasattr(source, "waitable") else self._world.waitables[source]
        assert isinstance(found, Waitable)
        return found

    def after(self, delay_s: float, handler: Handler) -> Timer:
        due = self._world.after(delay_s, self._process.wake_now).due
        timer = Timer(due, next(self._order), handler)
        heapq.heappush(self._timers, timer)
        return timer

    def every(self, interval_s: float, handler: Handler) -> None:
        def again() -> None:
            self.after(interval_s, again)
            handler()

        self.after(interval_s, again)

    beat = every

    def before_wait(self, handler: Handler) -> None:
        self._before_wait.append(handler)

    def post(self, handler: Handler) -> None:
        self._posted.append(handler)
        self._process.wake()

    def stop(self, code: int = 0) -> None:
        self._process.end(f"stopped by itself with {code}")

    def iterate(self) -> bool:
        """Once through the loop. True if there is more to do at once."""
        ready: list[int | None] = [n for n in self._handlers if self._world.waitables[n].ready()]
        if self._posted:
            ready.append(None)
        self._world.random.shuffle(ready)
        for number in ready:
            handler = self._run_posted if number is None else self._handlers.get(number)
            if handler is not None:
                handler()
        while self._timers and self._timers[0].due <= self.now():
            timer = heapq.heappop(self._timers)
            if timer.handler is not None:
                timer.handler()
        for before in self._before_wait:
            before()
        return bool(self._posted) or any(self._world.waitables[n].ready() for n in self._handlers)

    def _run_posted(self) -> None:
        for _ in range(len(self._posted)):
            self._posted.popleft()()


class Process:
    """One incarnation of a role. `effect` is called by every model where the process touches the outside."""

    def __init__(self, world: World, side: str, role: str, generation: int) -> None:
        self.world, self.side, self.role, self.generation = world, side, role, generation
        self.pid = generation
        self.alive, self.stopped = True, False
        self.was_stopped = False  # ever: others may have taken it for dead
        self.longest_stop_s = 0.0
        self._stopped_at = 0.0
        self.dead = False  # the pidfd says so: no thread of it does anything any more
        self.loop = SimLoop(self)
        self.on_death: list[Callable[[], None]] = []  # what the kernel does with what it had
        self.died: Callable[[str], None] = lambda why: None
        self.effects = 0
        self.kill_in: int | None = None  # effects left to live
        self._step_planned = False
        self._threads: list[SimThread] = []

    def __str__(self) -> str:
        return f"{self.side} {self.role}@{self.generation % 1_000_000}"

    # -- running -------------------------------------------------------------------------------------------------
    def wake(self) -> None:
        if self.alive and not self._step_planned:
            self._step_planned = True
            self.world.soon(self._step)

    def wake_now(self) -> None:
        """For a timer that is due."""
        self.wake()

    def _step(self) -> None:
        self._step_planned = False
        if self.stopped or not self.alive or self.struck(STEP):
            return
        more = self.do(self.loop.iterate)
        if self.alive and not self.struck(STEP_OVER) and more:
            self.wake()

    def struck(self, what: str) -> bool:
        """Whether it is killed here, between two effects. If so it is dead now."""
        if not self.world.dies(self, what):
            return False
        self.finish("killed")
        return True

    def do(self, call: Callable[[], Any]) -> Any:
        """Run `call` as this process; what it raises is its death."""
        before, self.world.current = self.world.current, self
        try:
            return call()
        except Killed:
            self.finish("killed")
        except Refused as error:
            self.finish(f"refused: {error}")
            self.world.violate(f"{self} says it can never work: {error}")
        except Exception as error:
            self.finish(f"{type(error).__name__}: {error}")
            self.world.counts[f"exit {self.role.split('.')[0]} {type(error).__name__}"] += 1
            if not _expected(error):
                self.world.violate(f"{self} broke: {type(error).__name__}: {error}")
        finally:
            self.world.current = before
        return None

    def effect(self, what: str) -> None:
        """The process does something that others can see. An armed kill may come before or after it."""
        if not self.alive:
            raise Killed
        self.effects += 1
        if self.struck(what):
            raise Killed
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in <= 0:
                self.world.say(f"{self} is killed at {what}")
                self.world.counts[f"killed {self.side} {self.role.split('.')[0]} at {what}"] += 1
                self.finish("killed")
                raise Killed

    # -- stopping and dying --------------------------------------------------------------------------------------
    def stop(self) -> None:
        self.stopped = self.was_stopped = True
        self._stopped_at = self.world.now
        self.world.say(f"{self} is stopped")

    def go_on(self) -> None:
        if self.alive and self.stopped:
            self.stopped = False
            self.longest_stop_s = max(self.longest_stop_s, self.world.now - self._stopped_at)
            self.world.say(f"{self} goes on")
            self.wake()
            for thread in self._threads:
                thread.look()

    def end(self, why: str) -> None:
        self.finish(why)
        raise Killed

    def finish(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self.world.say(f"{self} is dead: {why}")
        for call in self.on_death:
            call()
        self.world.after(0, self.threads_end)
        self.world.soon(lambda: self._gone(why), 0.2e-3, 5e-3)

    def _gone(self, why: str) -> None:
        self.dead = True
        self.died(why)

    def threads_end(self) -> None:
        for thread in self._threads:
            thread.abandon()

    def start_thread(self, thread: "SimThread") -> None:
        self._threads.append(thread)


def _expected(error: Exception) -> bool:
    """Crash-only exits that are by design: Gone, and errors of the kernel that mean the ground has moved."""
    from common.errors import Gone

    return isinstance(error, (Gone, OSError))


class SimThread:
    """threading.Thread for a process: runs until it blocks in a model (`block`), and on when the model lets it.

    A greenlet and not a thread: os.fork copies it, and whoever explores kill points forks in the middle of a run.
    """

    def __init__(self, target: Callable[[], None], name: str = "", daemon: bool = True) -> None:
        from tests.sim.run import here

        process = here().current
        assert process is not None
        self._process, self._target, self.name = process, target, name
        self._ready: Callable[[], bool] | None = None
        self._ended = self._started = self._abandoned = False
        self._greenlet = greenlet(self._run)
        _threads[self._greenlet] = self
        process.start_thread(self)

    def start(self) -> None:
        self._process.world.soon(self._begin)

    def is_alive(self) -> bool:
        return not self._ended

    def _begin(self) -> None:
        if not self._process.alive or self._process.struck(THREAD_BEGINS):
            self._ended = True
            return
        self._started = True
        self._enter()

    def _enter(self) -> None:
        """Let it run until it blocks or ends. Whoever does so is where it comes back to."""
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()

    def _run(self) -> None:
        self._process.do(self._target)
        self._ended = True

    def block(self, ready: Callable[[], bool]) -> None:
        """Called in the thread: come back when `ready()`; never, if the process dies first."""
        before = self._process.world.current
        self._ready = ready
        self._process.world.soon(self.look)
        self._process.world.current = None
        assert self._greenlet.parent is not None
        self._greenlet.parent.switch()
        if self._abandoned:
            raise Killed
        self._process.world.current = before

    def look(self) -> None:
        if self._ended or self._ready is None:
            return
        if not self._process.alive:
            return self.abandon()
        if self._process.stopped:
            return
        if not self._ready():
            self._process.world.after(500e-6, self.look)
            return
        if self._process.struck(THREAD_STEP):
            return
        self._ready = None
        self._enter()

    def abandon(self) -> None:
        """The process is dead: let its frames end."""
        if self._started and not self._ended and self._ready is not None:
            self._ready, self._abandoned = None, True
            self._enter()


_threads: WeakKeyDictionary[greenlet, SimThread] = WeakKeyDictionary()


def block(ready: Callable[[], bool]) -> None:
    """A call that waits, of whatever thread of whatever process this is. The loop's thread must never come here."""
    thread = _threads.get(getcurrent())
    if thread is None:
        raise AssertionError("the loop of a role would block here")
    if not ready():
        thread.block(ready)
