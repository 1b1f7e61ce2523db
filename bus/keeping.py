"""A role's side of the fd store: leaves copies of descriptors with the spawner, and again with each new spawner.

The store's copies keep alive what the descriptors stand for while the role is dead. When spawner and twin have died
together their copies are gone, so the connection is watched: its end means a spawner that may know nothing yet.
"""

import contextlib
import os
import socket
from typing import Final

from bus import fds as fdsocket
from bus.role import Role
from common.errors import Gone, WireError

_AGAIN_S: Final = 0.1  # until a new spawner listens


class Keeping:
    """Keeps `fds` under `names` for this role, from now on."""

    def __init__(self, role: Role, names: list[str], fds: tuple[int, ...]) -> None:
        self._role, self._names, self._fds = role, names, fds
        self._socket: socket.socket | None = None
        self._connect()

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(os.fspath(self._role.runtime.spawner_socket()))
            fdsocket.send(sock, {"do": "keep", "role": self._role.name, "names": self._names}, self._fds)
        except (OSError, Gone):
            sock.close()
            self._role.loop.after(_AGAIN_S, self._connect)
            return
        self._socket = sock
        self._role.loop.watch(sock.fileno(), self._heard)

    def _heard(self) -> None:
        sock = self._socket
        assert sock is not None
        try:
            while True:
                message, received = fdsocket.receive(sock)  # everything that watchers are told; ours is in it
                for fd in received:
                    os.close(fd)
                if message.get("event") == "error":
                    self._role.log.error(f"descriptors are not kept: {message.get('why')}")
        except BlockingIOError:
            return
        except WireError as error:
            self._role.log.warning(str(error))
        except (Gone, OSError):
            self._role.loop.unwatch(sock.fileno())
            with contextlib.suppress(OSError):
                sock.close()
            self._socket = None
            self._connect()
