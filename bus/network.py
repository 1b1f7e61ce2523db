"""What ZeroMQ asks the system for at a process's first context is asked once, before any role is forked.

Debian's libzmq is built with OpenPGM, whose start looks a protocol up in the system's databases: /etc/nsswitch.conf and
/etc/protocols. Those are on the root file system, and if that is on our disk, a new `usb` would wait for a file that
nobody but itself can bring (seen in a boot). The start is counted, so who inherits one begun does not do it again.
"""

import zmq

_held: list["zmq.Context[zmq.Socket[bytes]]"] = []


def begin() -> None:
    """In the spawner, before its first fork. The context has no socket, and so no thread: a fork may inherit it.

    It is never used and never ended; its one descriptor is closed in each child with all others.
    """
    if not _held:
        _held.append(zmq.Context())
