"""`replug demo --image F`: somebody's own image, served in a guest, with a shell there to use it. No board is needed.

Outside (`try_image`): a guest with the image in view. Inside (`main`): both sides up, the image below an overlay that
ends with the guest, so the file stays as it is; then a shell, or, without a terminal, a read with a kill in the middle.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bus.runtime import Runtime, Side, living
from common.errors import Exit, Refused
from common.units import show_ms, show_size
from tools.demo.inside import REPLUG, DemoFailed, replug, status, wait_for

_READ_BYTES = 32 << 20  # of it at most, where nobody sits at a terminal: an emulated guest takes seconds for that
_CHUNK = 256 << 10


def try_image(path: Path, arch: str | None, timeout_s: float) -> int:
    """The guest's exit status. Refused if there is no such image."""
    from tools.vm.__main__ import SHELL_LIMIT_S
    from tools.vm.__main__ import main as vm

    image = path.resolve()
    if not image.is_file() or image.stat().st_size == 0 or image.stat().st_size % 512:
        raise Refused(f"{path}: no disk image: give a file of whole sectors of 512 bytes")
    if arch not in (None, "amd64"):
        raise Refused(
            "--image: the guest sees this machine's files only if it is of this machine's kind: leave out --arch"
        )
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    action = ["shell", "--timeout", f"{SHELL_LIMIT_S}"] if terminal else ["run", "--timeout", f"{timeout_s}"]
    return vm([*action, "--visible", str(image.parent), "--", sys.executable, "-m", "tools.demo.trial", str(image)])


@contextmanager
def served(image: Path) -> Iterator[dict[str, Any]]:
    """Its export on the gadget side, live; both sides are down afterwards."""
    with tempfile.TemporaryDirectory(prefix="replug-try-") as place:
        for side in (
            ("gadget", "up"),
            ("host", "serve", "--background", f"image=overlay:{place}/writes.map?over={image}"),
        ):
            done = replug(*side)
            if done.returncode:
                raise DemoFailed(f"{' '.join(side)}: exit {done.returncode}: {done.stderr.strip()}")
        try:
            yield wait_for("the disk to be live", _live, interval_s=0.2)
        finally:
            replug("host", "down")
            replug("gadget", "down", "--force")


def _live() -> dict[str, Any] | None:
    exports: list[dict[str, Any]] = status(Side.GADGET)["exports"]
    return next((e for e in exports if e["state"] == "live" and Path(e["device"]).exists()), None)


def main(argv: list[str]) -> int:
    """In the guest: `python -m tools.demo.trial IMAGE`."""
    image = Path(argv[0])
    say("bringing both sides up, which takes a while where the guest is emulated")
    try:
        with served(image) as export:
            say(f"{image} is {export['device']} here, {show_size(export['size_bytes'])}")
            say("what is written goes into an overlay that ends with this guest: your file stays as it is")
            return _shell(export["device"]) if sys.stdin.isatty() else _watch_a_kill(image, export)
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        say(str(error))
        return Exit.FAULT


def say(text: str) -> None:
    print(f"replug: {text}", flush=True)


def _shell(device: str) -> int:
    """Until `exit`. Both sides run on this one machine, so commands say which they mean."""
    nodes = " ".join(str(path) for path in sorted(Path("/dev").glob(f"{Path(device).name}*")))
    say(f"try: replug top --side gadget; mount {nodes.split()[-1]} /mnt; dd if={device} of=/dev/null bs=1M;")
    say("     meanwhile 'replug kill usb --side gadget', or kill -9 any process. 'exit' ends the guest")
    say(f"devices: {nodes}")
    command = REPLUG[0]
    path = f"{Path(command).parent}:{os.environ.get('PATH', '')}"
    return subprocess.call(["bash", "-i"], env={**os.environ, "PATH": path, "PS1": "replug-guest# "})


def _watch_a_kill(image: Path, export: dict[str, Any]) -> int:
    """Read and compare, and kill the disk's own process when half of it was read."""
    size = min(image.stat().st_size, _READ_BYTES)
    record = living(Runtime(Side.GADGET), export["role"])
    longest_s, done, killed = 0.0, 0, False
    with open(export["device"], "rb", buffering=0) as disk, image.open("rb") as file:
        while done < size:
            if not killed and done >= size // 2 and record is not None:
                os.kill(record.pid, signal.SIGKILL)
                killed = True
                say(f"{export['role']} killed (SIGKILL) after {show_size(done)}")
            began = time.monotonic()
            got = disk.read(min(_CHUNK, size - done))
            longest_s = max(longest_s, time.monotonic() - began)
            if not got or got != file.read(len(got)):
                raise DemoFailed(f"at byte {done} the disk is not what {image} is")
            done += len(got)
    wait_for("its successor", lambda: living(Runtime(Side.GADGET), export["role"]) not in (None, record))
    print(replug("status", "--side", "gadget").stdout, end="", flush=True)
    say(f"pass: {show_size(done)} read, every byte is the image's; the longest read took {show_ms(longest_s)}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
