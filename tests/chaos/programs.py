"""Other people's programs as the load: fio, which verifies every block by crc32c, on a disk and on an ext4 of another.

They know nothing of us and we nothing of what they wrote, so their exit status judges, and e2fsck. When I/O flowed and
how long it did not is read from the block layer's own counters (Documentation/block/stat.rst).
"""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from tests.chaos.workload import Violation

_LOOK_S: Final = 0.01  # between two looks at the counters: so exact is a pause
_ENDED_BY_US: Final = 128  # fio's exit status after SIGINT, when all else was well
_READS, _WRITES, _IN_FLIGHT, _DISCARDS, _FLUSHES = 0, 4, 8, 11, 15  # fields of /sys/block/*/stat
_FIO = """
[global]
direct=1
ioengine=libaio
verify=crc32c
verify_fatal=1
verify_backlog=32
verify_backlog_batch=32
time_based=1
runtime=1d
randseed={seed}
rw=randwrite
bssplit=4k/60:16k/30:64k/10
"""
_ON_DISK = "[disk]\nfilename={device}\niodepth=4\nfsync=64\n"
_ON_FILES = """
[direct]
directory={mount}
size=1m
nrfiles=4
iodepth=2
fsync=16
[buffered]
directory={mount}
size=512k
direct=0
fsync=8
end_fsync=1
"""


class Fio:
    """fio at work on a block device, seen as a load of tests.chaos.__main__. `jobs` is the end of its job file."""

    def __init__(self, device: Path, seed: int, jobs: str = _ON_DISK) -> None:
        self.device = device
        self.violation: Violation | None = None
        self.completed, self._in_flight, self.bytes_checked = 0, 0, 0
        self._counters = Path("/sys/block") / device.name / "stat"
        self._work = Path(tempfile.mkdtemp(prefix="replug-fio-"))
        (self._work / "job").write_text(_FIO.format(seed=seed) + jobs.format(device=device, mount=self._work / "mnt"))
        self._prepare()
        self._look()
        self._last, self._gap, self._stopping = time.monotonic(), 0.0, False
        with (self._work / "words").open("w") as words:
            self._fio = subprocess.Popen(
                ["fio", "--output-format=json", f"--output={self._work / 'told'}", str(self._work / "job")],
                stdout=words,
                stderr=subprocess.STDOUT,
                cwd=self._work,
            )
        self._watch = threading.Thread(target=self._watching, daemon=True)
        self._watch.start()

    def _prepare(self) -> None:
        """What the jobs work on."""

    # -- for the one who strikes -----------------------------------------------------------------------------------
    def begin_gap(self) -> None:
        self._gap = 0.0

    def pause(self) -> float:
        return max(self._gap, time.monotonic() - self._last)

    def in_flight(self) -> int:
        return self._in_flight

    def stop(self, limit_s: float) -> None:
        """Raises what fio found wrong, or that it does not end."""
        self._stopping = True
        self._fio.send_signal(signal.SIGINT)
        self._watch.join(limit_s)
        if self._watch.is_alive():
            self._fio.kill()
            raise Violation(f"{self.device}: fio did not end within {limit_s:g} s")
        if self.violation is not None:
            raise self.violation
        self._judge()

    def judge_file(self, file: Path) -> int:
        """fio read back what it wrote; the host's file is judged as far as its kind allows. Returns bytes judged."""
        return 0

    # -- what it does ----------------------------------------------------------------------------------------------
    def _look(self) -> None:
        fields = [int(field) for field in self._counters.read_text().split()]
        self.completed = sum(fields[kind] for kind in (_READS, _WRITES, _DISCARDS, _FLUSHES))
        self._in_flight = fields[_IN_FLIGHT]

    def _watching(self) -> None:
        while self._fio.poll() is None:
            before = self.completed
            self._look()
            if self.completed != before:
                now = time.monotonic()
                self._gap, self._last = max(self._gap, now - self._last), now
            time.sleep(_LOOK_S)
        if not self._stopping or self._fio.returncode not in (0, _ENDED_BY_US):
            words = (self._work / "words").read_text()[-1500:] + (self._work / "told").read_text()[:500]
            self.violation = Violation(f"{self.device}: fio ended with {self._fio.returncode}: {words}")

    def _judge(self) -> None:
        told = (self._work / "told").read_text()
        for job in json.loads(told[told.index("{") :])["jobs"]:
            if job["error"]:
                raise Violation(f"{self.device}: fio {job['jobname']}: {os.strerror(job['error'])}")
            self.bytes_checked += job["read"]["io_bytes"]


class FileSystem(Fio):
    """fio in files of an ext4, by O_DIRECT and through the page cache; e2fsck of the host's file at the end."""

    def __init__(self, device: Path, seed: int) -> None:
        super().__init__(device, seed, _ON_FILES)

    def _prepare(self) -> None:
        (self._work / "mnt").mkdir()
        _run("mkfs.ext4", "-q", "-F", str(self.device))
        _run("mount", "-o", "discard", str(self.device), str(self._work / "mnt"))

    def stop(self, limit_s: float) -> None:
        try:
            super().stop(limit_s)
        finally:
            _run("umount", str(self._work / "mnt"))

    def judge_file(self, file: Path) -> int:
        _run("e2fsck", "-fn", str(file))
        return file.stat().st_size


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Violation(f"{' '.join(command)}: exit {done.returncode}: {done.stdout}{done.stderr}")


def programs(devices: list[Path], seed: int) -> list[Fio]:
    """The load of LOAD=fio: a disk, and an ext4 on the other one."""
    return [Fio(devices[0], seed), FileSystem(devices[1], seed)]
