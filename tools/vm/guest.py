"""One QEMU: boot, run one command, carry its output out live, and end in bounded time whatever happens.

What the guest runs is `initrd`'s business, which accelerator to use `accel`'s. Called by the command line,
by `parallel` once for each core, and by `accel` for its probe.
"""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tools.vm.arch import BOARDS
from tools.vm.images import Image, require
from tools.vm.initrd import Job, build

KERNEL_OPTIONS = (
    # panic=-1 with -no-reboot ends QEMU at once; an oops is a panic because a test must not pass over one
    # one allocation in 10 ms is watched for use after free (Documentation/dev-tools/kfence.rst): it names the culprit
    "kfence.sample_interval=10 loglevel=4 panic=-1 oops=panic nokaslr mitigations=off nowatchdog audit=0 "
    "no_timer_check random.trust_cpu=on rdinit=/init"
)
PORTS = ("out", "err", "control")
STOP_S = 10.0
"""How long a killed QEMU may take to be gone before we say so and leave it."""
LAST_WORDS_S = 5.0
"""How long a guest past its time limit may take to print its processes on the console."""

Sink = Callable[[bytes], None]


class Ended(Enum):
    """How a run came to its end."""

    COMMAND = "the command ended"
    TIMEOUT = "the time limit passed"
    DIED = "the guest died"


@dataclass(frozen=True)
class Machine:
    """How the guest is emulated. With *terminal* our own stdin and stdout become its /dev/hvc0.

    *root*: the tree whose files it sees, read-only: this machine's, unless it could not run them.
    *append*: more words on the kernel's command line.
    """

    accel: Sequence[str]
    memory: str = "1G"
    terminal: bool = False
    root: str = "/"
    append: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a run. `exit_code` is the command's, 124 after the time limit, 125 if the guest died."""

    ended: Ended
    exit_code: int
    boot_s: float | None
    total_s: float
    console: str
    dmesg: str


class Stream:
    """Output up to the token that ends it. A tail that may be the token's beginning is held back."""

    def __init__(self, token: bytes, sink: Sink) -> None:
        self._token, self._sink, self._held = token, sink, b""
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Pass on what is surely output; afterwards `complete` says whether the token was seen."""
        if self.complete:
            return
        self._held += data
        before, found, _ = self._held.partition(self._token)
        if found:
            self.complete = True
            self._emit(before)
            self._held = b""
            return
        starts = range(len(self._token) - 1, 0, -1)
        keep = next((n for n in starts if self._held.endswith(self._token[:n])), 0)
        cut = len(self._held) - keep
        self._emit(self._held[:cut])
        self._held = self._held[cut:]

    def flush(self) -> None:
        """The stream broke off: what was held back is output after all."""
        self._emit(self._held)
        self._held = b""

    def _emit(self, data: bytes) -> None:
        if data:
            self._sink(data)


class Control:
    """The control port: `ready`, `exit N`, then the kernel log if it was asked for."""

    def __init__(self) -> None:
        self._text = b""
        self.ready_at: float | None = None

    def feed(self, data: bytes) -> None:
        self._text += data
        if self.ready_at is None and self._text.startswith(b"ready\n"):
            self.ready_at = time.monotonic()

    @property
    def exit_code(self) -> int:
        """The command's exit status; only meaningful once the stream is complete."""
        return int(self._text.split(b"\n", 2)[1].removeprefix(b"exit "))

    @property
    def dmesg(self) -> str:
        return self._text.split(b"\n", 2)[2].decode(errors="replace")


def run(image: Image, job: Job, machine: Machine, timeout_s: float, out: Sink, err: Sink) -> Result:
    """Run *job* in a fresh guest. *out* and *err* get the command's output as it comes.

    Raises Lacking if QEMU is missing; what a QEMU that dies complains about is in the result's console.
    """
    board = BOARDS[image.arch]
    require((board.qemu, board.qemu_package))
    token = f"\0vm-end-{secrets.token_hex(8)}\n".encode()
    control = Control()
    streams = {"out": Stream(token, out), "err": Stream(token, err), "control": Stream(token, control.feed)}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="replug-vm-") as name:
        directory = Path(name)
        (directory / "initrd").write_bytes(build(image, job, token))
        qemu, ours = _start(image, job, machine, directory)
        try:
            timed_out = _carry(streams, ours, started + timeout_s)
        finally:
            _end(qemu)
            for sock in ours.values():
                sock.close()
        console = (directory / "console").read_text(errors="replace")
        complaint = (directory / "qemu").read_text(errors="replace").strip()
    boot_s = None if control.ready_at is None else control.ready_at - started
    total_s = time.monotonic() - started
    if all(stream.complete for stream in streams.values()):
        return Result(Ended.COMMAND, control.exit_code, boot_s, total_s, console, control.dmesg)
    if timed_out:
        return Result(Ended.TIMEOUT, 124, boot_s, total_s, console, "")
    return Result(Ended.DIED, 125, boot_s, total_s, console + complaint, "")


def qemu_command(image: Image, job: Job, machine: Machine, directory: Path, fds: dict[str, int]) -> list[str]:
    """The whole command line; *fds* are inherited sockets, one for each port."""
    security = "passthrough" if os.geteuid() == 0 else "none"
    board = BOARDS[image.arch]
    command = [board.qemu, *board.arguments, *machine.accel, "-smp", "1", "-m", machine.memory]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"]
    command += ["-kernel", str(image.kernel), "-initrd", str(directory / "initrd"), "-append"]
    command += [f"console={board.console} {KERNEL_OPTIONS} {machine.append}".rstrip()]
    command += ["-serial", f"file:{directory / 'console'}", "-device", "virtio-serial-pci"]
    for port in PORTS:
        command += ["-chardev", f"socket,id={port},fd={fds[port]}"]
        command += ["-device", f"virtserialport,chardev={port},name={port}"]
    if machine.terminal:
        command += ["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]
    local = f"local,security_model={security},multidevs=remap"
    command += ["-virtfs", f"{local},path={machine.root},mount_tag=root,readonly=on"]
    for number, share in enumerate(job.shares):
        command += ["-virtfs", f"{local},path={share.replace(',', ',,')},mount_tag=share{number}"]
    return command


def _start(
    image: Image, job: Job, machine: Machine, directory: Path
) -> tuple[subprocess.Popen[bytes], dict[str, socket.socket]]:
    pairs = {port: socket.socketpair() for port in PORTS}
    theirs = {port: pair[1].fileno() for port, pair in pairs.items()}
    command = qemu_command(image, job, machine, directory, theirs)
    # A guest must not outlive whoever waits for it, however that one ends.
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    with (directory / "qemu").open("wb") as complaints:
        qemu = subprocess.Popen(
            command,
            stdin=None if machine.terminal else subprocess.DEVNULL,
            stdout=None if machine.terminal else complaints,
            stderr=complaints,
            pass_fds=theirs.values(),
        )
    for _, other in pairs.values():
        other.close()
    return qemu, {port: pair[0] for port, pair in pairs.items()}


def _carry(streams: dict[str, Stream], ours: dict[str, socket.socket], deadline: float) -> bool:
    """Feed the streams until all are complete or QEMU is gone (False), or the deadline passed (True)."""
    with selectors.DefaultSelector() as selector:
        for port, sock in ours.items():
            selector.register(sock, selectors.EVENT_READ, port)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                for stream in streams.values():
                    stream.flush()
                _last_words(ours["control"])
                return True
            for key, _ in selector.select(left):
                data = ours[key.data].recv(65536)
                stream = streams[key.data]
                stream.feed(data)
                if not data:
                    stream.flush()
                if not data or stream.complete:
                    selector.unregister(key.fileobj)
    return False


def _last_words(control: socket.socket) -> None:
    """Have the guest print what runs and what is blocked; a guest that hangs altogether cannot."""
    try:
        control.settimeout(LAST_WORDS_S)
        control.sendall(b"where\n")
        control.recv(65536)
    except OSError:
        return


def _end(qemu: subprocess.Popen[bytes]) -> None:
    qemu.kill()
    try:
        qemu.wait(STOP_S)
    except subprocess.TimeoutExpired:
        why = f"QEMU (pid {qemu.pid}) does not die: see what it waits for in /proc/{qemu.pid}/stack"
        raise OSError(errno.EBUSY, why) from None
