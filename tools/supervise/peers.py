"""Who talks to the spawner: its Unix socket, those connected to it, and what is told to all of them.

A message is one datagram with the descriptors that go with it (bus.fds). What an order means is the spawner's business;
one that makes no sense is answered by `error`, and its descriptors are closed.
"""

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bus import fds as fdsocket
from common.errors import MALFORMED, Gone, ReplugError, WireError
from common.log import Log
from common.shown import shown

Obey = Callable[[socket.socket, dict[str, Any], list[int]], None]


class Peers:
    """The listener and its connections, on the spawner's selector. `obey(peer, message, descriptors)` per order."""

    def __init__(self, selector: selectors.DefaultSelector, path: Path, log: Log, obey: Obey) -> None:
        self._selector, self._log, self._obey = selector, log, obey
        self._connected: list[socket.socket] = []
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # a dead spawner's: we hold the name
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(path))
        self._listener.listen(16)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def detach(self) -> None:
        """In a fork that goes on without them: closing a number that is someone else's by then must not happen."""
        for sock in (self._listener, *self._connected):
            sock.detach()

    def tell(self, message: dict[str, Any]) -> None:
        """To all."""
        for peer in list(self._connected):
            self.send(peer, message)

    def send(self, peer: socket.socket, message: dict[str, Any], sent: tuple[int, ...] = ()) -> None:
        """To one. Who does not read loses it; who is gone is forgotten."""
        try:
            fdsocket.send(peer, message, sent)
        except BlockingIOError:
            self._log.warning(f"a reader does not read: {message.get('event')} dropped")
        except (Gone, OSError):
            self._forget(peer)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            peer, _ = self._listener.accept()
            peer.setblocking(False)
            self._connected.append(peer)
            self._selector.register(peer, selectors.EVENT_READ, lambda: self._read(peer))

    def _read(self, peer: socket.socket) -> None:
        try:
            message, received = fdsocket.receive(peer)
        except BlockingIOError:
            return
        except WireError as error:
            self._log.warning(str(error))
            return
        except (Gone, OSError):
            self._forget(peer)
            return
        try:
            self._obey(peer, message, received)
        except (ReplugError, *MALFORMED, OSError) as error:
            self._log.warning(shown(f"order {message.get('do')!r}: {type(error).__name__}: {error}"))
            for fd in received:
                with contextlib.suppress(OSError):
                    os.close(fd)
            self.send(peer, {"event": "error", "why": shown(str(error))})

    def _forget(self, peer: socket.socket) -> None:
        if peer in self._connected:
            self._connected.remove(peer)
            self._selector.unregister(peer)
            peer.close()
