"""The demo where the kernel is: brings both sides up, checks bytes, pulls cables, kills processes, leaves nothing.

Prints one JSON object a line for `tools.demo.show`. Exit status 0 if all was right.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bus.runtime import Runtime, Side, living
from common.log import human
from common.units import show_ms
from tools.cli.status import look
from tools.demo import dd, faults, image
from tools.demo.faults import Fault
from tools.supervise.launch import all_living

REPLUG = [sys.executable, "-m", "tools.cli"]
DEADLINE_S = 90.0  # for anything the demo waits for; far above every budget, so that a hang ends with a name
_EDGE_BYTES = 1 << 20  # a dd is in the middle when it is this far from its start, and twice as far from its end
TREE = "usr"  # what is copied in: a directory of this name in the file system


class DemoFailed(Exception):
    """A difference, or something that did not come. Its text is the last line of the demo."""


def tell(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


def wait_for(what: str, condition: Callable[[], Any], interval_s: float = 0.02, limit_s: float = DEADLINE_S) -> Any:
    """Poll (the kernel's files announce nothing) until `condition` is true; DemoFailed names what did not come.

    `interval_s` is longer where each look costs the processes that are looked at.
    """
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise DemoFailed(f"waited {limit_s:g} s for {what}")
        time.sleep(interval_s)


def replug(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REPLUG, *arguments], capture_output=True, text=True, timeout=DEADLINE_S)


def status(side: Side) -> dict[str, Any]:
    """What `replug status --json` prints, without the start of a Python for each look."""
    return look(Runtime(side))


def pids() -> dict[tuple[Side, str], int]:
    """(side, role) to pid of everything that runs, from the records they hold: nobody has to answer for it."""
    return {(side, record.role): record.pid for side in Side for record in all_living(Runtime(side))}


@dataclass
class Bench:
    """What the demo works with once both sides are up."""

    image: Path
    scratch: Path
    image_device: str
    scratch_device: str
    image_role: str  # gadget's queue role of the image
    serve: subprocess.Popen[bytes]  # the command `replug host serve`
    down_s: float = 0.0  # how long `replug gadget down` took at the end


@contextmanager
def both_sides(image_file: Path, scratch: Path) -> Iterator[Bench]:
    """Bring both sides up; at the end Ctrl-C the host, take the gadget down, and see that nothing is left.

    The two files must differ in size: v0 carries no names, so that is how their devices are told apart.
    """
    tell("step", text="starting the gadget side (replug gadget up)")
    up = replug("gadget", "up")
    if up.returncode:
        raise DemoFailed(f"gadget up: exit {up.returncode}: {up.stderr.strip()}")
    tell("step", text=f"starting the host side (replug host serve {image_file.name} {scratch.name})")
    log = image_file.with_suffix(".serve.log")
    with log.open("w") as output, ExitStack() as stack:
        serve = subprocess.Popen(
            [*REPLUG, "host", "serve", str(image_file), str(scratch)], stdout=output, stderr=subprocess.STDOUT
        )
        stack.callback(serve.kill)
        try:
            devices = wait_for("both devices to be live", lambda: _devices(serve, log), interval_s=0.5)
            disk, room = devices[image_file.stat().st_size], devices[scratch.stat().st_size]
            bench = Bench(image_file, scratch, disk["device"], room["device"], disk["role"], serve)

            def take_down() -> None:
                bench.down_s = _take_down(bench.serve)

            stack.callback(take_down)
            yield bench
        except Exception:  # whatever it is: the logs go with the sides
            _tell_logs()
            stack.callback(lambda: _take_down(serve))
            raise
    _see_nothing_left()


def is_up(log: Path) -> bool:
    """Does this `host serve` say so? Devices may be live before; a Ctrl-C undoes it then, with another status."""
    return "Ctrl-C ends it" in log.read_text()


def _devices(serve: subprocess.Popen[bytes], log: Path) -> dict[int, Any] | None:
    if serve.poll() is not None:
        raise DemoFailed(f"host serve ended with {serve.returncode}: {log.read_text()[-500:]}")
    if not is_up(log):
        return None
    exports = {e["size_bytes"]: e for e in status(Side.GADGET)["exports"] if e["state"] == "live"}
    ready = len(exports) == 2 and all(Path(e["device"]).exists() for e in exports.values())
    return exports if ready else None


def _take_down(serve: subprocess.Popen[bytes]) -> float:
    """Returns how long `gadget down` took, in seconds."""
    if serve.poll() is None:
        serve.send_signal(signal.SIGINT)
    try:
        tell("step", text=f"Ctrl-C of host serve: exit {serve.wait(DEADLINE_S)}")
    except subprocess.TimeoutExpired:
        tell("note", text="host serve did not end after Ctrl-C")
        serve.kill()
    if not Runtime(Side.GADGET).root.exists():
        return 0.0
    began = time.monotonic()
    down = replug("gadget", "down")
    took_s = time.monotonic() - began
    tell("step", text=f"replug gadget down: exit {down.returncode} in {took_s:.1f} s {down.stderr.strip()}".rstrip())
    if down.returncode:
        replug("gadget", "down", "--force")
    return took_s


def _see_nothing_left() -> None:
    left = [str(p) for p in (*Path("/dev").glob("ublk[bc]*"), *Path("/run/replug").glob("*"))]
    left += [str(p) for p in Path("/sys/kernel/config/usb_gadget").glob("*")]
    left += [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " functionfs " in line]
    left += [name for p in Path("/proc").glob("[0-9]*/comm") if (name := _comm(p)).startswith(("replug:", "ffs-mm"))]
    if left:
        raise DemoFailed(f"left behind after down: {', '.join(left)}")
    tell("step", text="nothing left: no device, no gadget, no mount, no process, no runtime directory")


def _comm(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _tell_logs() -> None:
    for path in sorted(Path("/run/replug").glob("*/log/*.log")):
        for line in path.read_text(errors="replace").splitlines()[-25:]:
            tell("log", text=f"{path.parent.parent.name}: {human(line)}")


# -- (a) and (b): the file system ------------------------------------------------------------------------------------
def read_everything(bench: Bench) -> int:
    """dd of the whole device against the host's file; returns bytes verified."""
    tell("step", text=f"(a) dd of the whole {bench.image_device}, sha256 against {bench.image.name}")
    started, size = time.monotonic(), bench.image.stat().st_size
    reader = dd.ReadDd(bench.image_device, image.sha256(bench.image))
    reader.start()
    while not reader.done:
        tell("progress", text="read", done=reader.offset, total=size)
        time.sleep(0.5)
    _judge(reader)
    rate = size / (time.monotonic() - started) / 1e6
    tell("step", text=f"    sha256 equal, {size >> 20} MiB at {rate:.1f} MB/s")
    return size


def use_file_system(bench: Bench, work: Path) -> int:
    """Mount on the gadget, copy a tree in, unmount, check the host's file; returns bytes verified."""
    tell("step", text=f"(b) mounting {bench.image_device} read-write, copying a tree in")
    content, mount, back = work / "tree", work / "mnt", work / "back"
    for directory in (content, mount, back):
        directory.mkdir()
    count = image.make_content(content, 4 << 20)
    _run("mount", "-t", "ext4", bench.image_device, str(mount))
    try:
        shutil.copytree(content, mount / TREE)
    finally:
        _run("umount", str(mount))
    _run("e2fsck", "-fn", str(bench.image))
    _run("debugfs", "-R", f"rdump /{TREE} {back}", str(bench.image))
    want, got = image.tree_digest(content), image.tree_digest(back / TREE)
    if want != got:
        raise DemoFailed(
            f"{len(want.items() ^ got.items())} files differ between what was copied in and the host's file"
        )
    size = sum(p.stat().st_size for p in content.rglob("*") if p.is_file())
    tell(
        "step",
        text=f"    {count} files, {size >> 20} MiB copied in; e2fsck -fn of the host's file clean; all read back equal",
    )
    return size


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise DemoFailed(f"{' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")


# -- (c) and (d): faults under load ----------------------------------------------------------------------------------
class Load:
    """A reading dd and a writing dd that never stop while faults are struck; counts what was verified."""

    def __init__(self, bench: Bench, work: Path) -> None:
        self._bench, self._pattern = bench, work / "pattern"
        self._expected = image.sha256(bench.image)
        self.verified_bytes = 0
        self.running: list[dd.Dd] = []
        for direction in ("read", "write"):
            self._start(direction)

    def _start(self, direction: str) -> None:
        started: dd.Dd
        if direction == "read":
            started = dd.ReadDd(self._bench.image_device, self._expected)
        else:
            size = self._bench.scratch.stat().st_size
            started = dd.WriteDd(self._bench.scratch_device, self._pattern, size, self._bench.scratch)
        started.start()
        self.running.append(started)

    def turn(self, restart: bool = True) -> None:
        """Judge what has ended, and (unless the faults are over) start it again."""
        for one in [d for d in self.running if d.done]:
            self.running.remove(one)
            self.verified_bytes += _judge(one)
            if restart:
                self._start(one.direction)

    def both_in_the_middle(self) -> bool:
        """Are both dds at work, with requests of each in flight, and far from their ends?"""
        self.turn()
        for one in self.running:
            total = (self._bench.image if one.direction == "read" else self._bench.scratch).stat().st_size
            if not _EDGE_BYTES < one.offset < total - 2 * _EDGE_BYTES or not dd.in_flight(one.device):
                return False
        return len(self.running) == 2

    def finish(self) -> None:
        while self.running:
            self.turn(restart=False)
            time.sleep(0.05)

    def stop(self) -> None:
        for one in self.running:
            one.kill()


def _judge(one: dd.Dd) -> int:
    outcome = one.outcome
    if outcome is None or outcome.status or not outcome.right:
        raise DemoFailed(f"{one.direction} dd of {one.device}: {outcome}")
    return outcome.size_bytes


def strike(load: Load, fault: Fault) -> None:
    """Strike once, while both dds have requests in flight; measure the pause; see that nobody else died.

    What goes wrong is told with the logs of both sides, as the processes that wrote them may be gone by the end.
    """
    try:
        _strike(load, fault)
    except DemoFailed:
        _tell_logs()
        raise


def _strike(load: Load, fault: Fault) -> None:
    before = pids()
    wait_for(f"both dds to be in the middle, before: {fault.title}", load.both_in_the_middle)
    offsets = {d.direction: d.offset for d in load.running}
    flying = {d.device: dd.in_flight(d.device) for d in load.running}
    devices = [d.device for d in load.running]
    started = time.monotonic()
    counts = {device: dd.completions(device) for device in devices}
    fault.strike()
    pause = _pause(load, devices, counts, started, fault)
    _others_alive(before, fault)
    tell(
        "fault",
        text=fault.title,
        offsets=offsets,
        in_flight=sum(flying.values()),
        pause=show_ms(pause),
        held=show_ms(fault.held_s) if fault.held_s else "",
    )


def _pause(load: Load, devices: list[str], counts: dict[str, int], started: float, fault: Fault) -> float:
    """Longest gap between two completions of either device, from just before the fault until both flow again.

    Flowing again is four completions after the last gap. Sampled every few ms; a kill may not have bitten yet when the
    first samples are taken, so the victim's successor must also be there.
    """
    last = dict.fromkeys(devices, started)
    since_gap = dict.fromkeys(devices, 0)
    longest = 0.0
    deadline = started + DEADLINE_S
    struck_at = time.monotonic()
    while time.monotonic() < deadline:
        load.turn()
        now = time.monotonic()
        for device in devices:
            count = dd.completions(device)
            if count != counts[device]:
                gap = now - last[device]
                if gap > longest:
                    longest, since_gap[device] = gap, 0
                since_gap[device] += count - counts[device]
                counts[device], last[device] = count, now
        if all(n >= 4 for n in since_gap.values()) and now - struck_at > 0.5 and _successor_runs(fault):
            return longest
        time.sleep(0.003)
    raise DemoFailed(f"{fault.title}: I/O did not go on within {DEADLINE_S:g} s")


def _successor_runs(fault: Fault) -> bool:
    return all(living(Runtime(side), role) is not None for side, role in fault.victims)


def _others_alive(before: dict[tuple[Side, str], int], fault: Fault) -> None:
    def settled() -> dict[tuple[Side, str], int] | None:
        now = pids()
        return now if all(now.get(key) not in (None, before.get(key)) for key in fault.victims) else None

    after = wait_for(f"a successor after: {fault.title}", settled)
    changed = [key for key in before if key not in fault.victims and after.get(key) != before[key]]
    if changed:
        raise DemoFailed(f"{fault.title}: other processes changed too: {changed}")


def all_faults(bench: Bench) -> list[Fault]:
    [tree] = Path("/sys/kernel/config/usb_gadget").glob("*")
    source = f"source.{bench.image.stem}"
    return [
        faults.unbind_udc(tree),
        faults.deauthorize(_usb_device),
        faults.kill(Side.GADGET, bench.image_role),
        faults.kill(Side.GADGET, "usb"),
        faults.kill(Side.HOST, "usb"),
        faults.kill(Side.HOST, source),
        faults.kill(Side.GADGET, "session"),
        faults.kill(Side.HOST, "session"),
    ]


def _usb_device() -> Path:
    for interface in Path("/sys/bus/usb/devices").glob("*:*"):
        if (interface / "bInterfaceSubClass").read_text().strip() == "53":
            return interface.parent / interface.name.partition(":")[0]
    raise DemoFailed("the gadget is not enumerated")


def run(work: Path) -> str:
    """All parts; returns the last line. Raises DemoFailed."""
    disk, scratch = work / "rootfs.img", work / "scratch.img"
    verified = 0
    with both_sides(disk, scratch) as bench:
        verified += read_everything(bench)
        verified += use_file_system(bench, work)
        load = Load(bench, work)
        planned = all_faults(bench)
        try:
            tell("step", text=f"(c), (d) {len(planned)} faults under a reading and a writing dd, both O_DIRECT")
            for number, fault in enumerate(planned, 1):
                text = f"fault {number}/{len(planned)}: {fault.title}"
                tell("progress", text=text, done=number - 1, total=len(planned))
                strike(load, fault)
            load.finish()
        finally:
            load.stop()
        verified += load.verified_bytes
    return f"demo: pass, {len(planned)} faults, {verified >> 20} MiB verified"


def main() -> int:
    """argv[1]: the directory with the two images. They are copied to this machine's memory: the host's files."""
    given, work = Path(sys.argv[1]), Path(tempfile.mkdtemp(prefix="replug-demo-", dir="/tmp"))
    for name in ("rootfs.img", "scratch.img"):
        shutil.copyfile(given / name, work / name)
    try:
        tell("end", ok=True, text=run(work))
    except DemoFailed as error:
        tell("end", ok=False, text=f"demo: FAIL {error}")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
