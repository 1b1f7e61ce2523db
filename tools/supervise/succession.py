"""Another spawner in the living one's place: of a new installation, with what the old one keeps, and by its consent.

The command `upgrade` of the new installation asks the living spawner to execute the new one, so that it has that one's
environment, control group and limits. The new one imports all it needs first; only then it asks for what is kept. The
old one gives copies, ends its twin, and exits. Whoever dies on the way: the twin, the new one or, if all are dead, a
fresh one that the watchdog executes takes the place, and the command can be said again.
"""

import os
import selectors
import signal
import socket
import struct
import time
from typing import Any, NoReturn

from bus import fds as fdsocket
from bus.runtime import FORMAT, Runtime, write_reason
from common import limits, trace
from common.errors import Gone, Refused, RoleExit, WireError
from tools.supervise import process
from tools.supervise.store import Store

SPAWNER = "spawner"
SUCCEED = "succeed"  # the argument of an executed spawner that does not start from nothing
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_AGAIN_S = 0.02  # a spawner that has just died is followed by its twin


def command_of(message: dict[str, Any]) -> tuple[list[str], str]:
    """What the order `successor` has us execute, and its PYTHONPATH. Refused if it makes no sense."""
    check_format(message)
    command, path = message["command"], message["pythonpath"]
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in [*command, path]):
        raise Refused(f"{command!r}: not a command")
    return command, path


def check_format(message: dict[str, Any]) -> None:
    if message.get("format") != FORMAT:
        raise Refused(f"its format is {message.get('format')!r}, ours {FORMAT}: they cannot work side by side")


def execute(runtime: Runtime, command: list[str], pythonpath: str) -> NoReturn:
    """In a child just forked: become the new spawner, in a session of its own (its niceness counts within that)."""
    try:
        process.reset_signals()
        process.close_all_but(())
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # I/O must not wait for its imports; once it is ready it goes first
        os.execve(command[0], command, {**os.environ, "PYTHONPATH": pythonpath})
    except BaseException as error:  # this process's last catcher: it must not run on as a second spawner
        write_reason(runtime, SPAWNER, f"{command[0]}: {error}")
    finally:
        os._exit(int(RoleExit.NEVER))


# -- the old one's end -----------------------------------------------------------------------------------------------
def give(peer: socket.socket, store: Store) -> None:
    """Send copies of all that is kept. Gone or OSError if it has not all been sent: then nothing has changed."""
    for role in store.roles():
        kept = store.of(role)
        fdsocket.send(peer, {"event": "keep", "role": role, "names": list(kept)}, tuple(kept.values()))
    fdsocket.send(peer, {"event": "yours"})
    trace.point("spawner.given")


# -- the new one's end -----------------------------------------------------------------------------------------------
def inherit(runtime: Runtime) -> Store:
    """What the living spawner keeps; it is dead when this returns. Refused: no consent. Gone: it is no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(limits.SILENCE_S)
        try:
            sock.connect(os.fspath(runtime.spawner_socket()))
            predecessor = os.pidfd_open(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        except OSError as error:
            raise Gone(f"no spawner to succeed: {error.strerror}") from None
        try:
            return _take(sock, predecessor)
        finally:
            os.close(predecessor)


def _take(sock: socket.socket, predecessor: int) -> Store:
    store = Store()
    try:
        fdsocket.send(sock, {"do": SUCCEED, "format": FORMAT})
        while (message := _next(sock, store))["event"] != "yours":
            if message["event"] == "error":
                raise Refused(f"the spawner that runs does not give its place: {message.get('why')}")
        if not _dead(predecessor, 2 * limits.DEATH_S):
            raise Gone("the spawner that gave its place does not die")
    except (OSError, KeyError, WireError) as error:
        store.drop_all()
        raise Gone(f"the spawner that runs: {error}") from None
    except (Gone, Refused):
        store.drop_all()
        raise
    return store


def _next(sock: socket.socket, store: Store) -> dict[str, Any]:
    """The next message. What is kept goes into `store`; all else that watchers are told is not for us."""
    message, received = fdsocket.receive(sock)
    if message["event"] == "keep":
        store.keep(str(message["role"]), [str(name) for name in message["names"]], received)
    else:
        for fd in received:
            os.close(fd)
    return message


def _dead(pidfd: int, limit_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        return bool(selector.select(limit_s))


def until_given(runtime: Runtime) -> Store:
    """As `inherit`, from whoever has the place next if one dies while we ask."""
    deadline = time.monotonic() + limits.SPAWNER_GONE_S
    while True:
        try:
            return inherit(runtime)
        except Gone:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)


def end_twin(pid: int) -> None:
    """It must not take the place that is given away. One that does not die finds the name taken when it wakes up."""
    pidfd = os.pidfd_open(pid)  # our child, not reaped: the number is that one's
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _dead(pidfd, limits.DEATH_S)
    finally:
        os.close(pidfd)
