"""The spawner's twin: forked while nothing is wrong, it holds copies of the kept descriptors and waits for its death.

An exec in its place would read the very disk we may be serving, and a process with ZeroMQ threads must not fork.
Forked and served by tools.supervise.spawner, whose next generation it becomes.
"""

import contextlib
import selectors
import socket

from bus import fds as fdsocket
from bus import newroot
from bus.runtime import Runtime, boottime_ns, take_name
from common.errors import MALFORMED, Gone, WireError
from tools.supervise import process
from tools.supervise.plan import Plan
from tools.supervise.store import Store

TWIN = "twin"


class Twin:
    """Dormant until `wait` returns the store, then its process is the next spawner."""

    def __init__(self, runtime: Runtime, store: Store, link: socket.socket, spawner_fd: int) -> None:
        self._runtime, self._store, self._link, self._spawner_fd = runtime, store, link, spawner_fd

    def wait(self) -> Store:
        """Take deposits until the spawner's pidfd says that it is dead."""
        selector = selectors.DefaultSelector()
        selector.register(self._spawner_fd, selectors.EVENT_READ)
        selector.register(self._link, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if self._link in ready and not self._take():
                selector.unregister(self._link)
            elif self._spawner_fd in ready:  # after all that it sent
                selector.close()
                self._link.close()
                newroot.keep_up(self._runtime.root)  # it has slept since before the root was switched, perhaps
                process.close_all_but(self._store.all_fds())
                return self._store

    def _take(self) -> bool:
        try:
            message, received = fdsocket.receive(self._link)
            if message["do"] == "keep":
                self._store.keep(message["role"], message["names"], received)
            elif message["do"] == "drop":
                self._store.drop(message["role"])
                fdsocket.send(self._link, {"event": "dropped"})
        except (WireError, *MALFORMED):
            return True  # the spawner checked it before: then it is its fault, and it is the one who counts
        except (Gone, OSError):
            return False
        return True


def fork_twin(runtime: Runtime, plan: Plan, store: Store, link: socket.socket, spawner_fd: int) -> Twin:
    """In the child just forked: be the twin. Its record makes it visible to whoever ends the side."""
    output = runtime.root / "log" / "spawner.err"
    process.begin_child(TWIN, {*store.all_fds(), link.fileno(), spawner_fd}, output)
    with contextlib.suppress(Gone):  # a predecessor is still dying: without a record we work as well
        take_name(runtime, TWIN, boottime_ns())
    return Twin(runtime, store, link, spawner_fd)
