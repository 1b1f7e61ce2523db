"""dd, watched: where it is (from /proc), whether the bytes were right when it ended."""

import hashlib
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512 * 1024  # bytes; O_DIRECT; the kernel cuts it into several requests, in flight together


@dataclass(frozen=True)
class Outcome:
    """How a dd ended: its exit status, its last words, and whether every byte was what it should be."""

    status: int
    words: str
    right: bool
    size_bytes: int


class Dd:
    """One running dd. `offset` is its file offset on the device, `outcome` is there once `done`."""

    def __init__(self, direction: str, device: str, command: list[str], device_fd: int) -> None:
        self.direction, self.device = direction, device
        self._device_fd = device_fd
        # not a shell pipeline: dd's own exit status is what counts
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    @property
    def offset(self) -> int:
        """Bytes; 0 before it has opened the device and after it has ended."""
        try:
            text = Path(f"/proc/{self._process.pid}/fdinfo/{self._device_fd}").read_text()
        except OSError:
            return 0
        return int(text.split()[1])

    def kill(self) -> None:
        self._process.kill()

    def _watch(self) -> None:
        raise NotImplementedError

    def _words(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class ReadDd(Dd):
    """Reads the whole device and compares its sha256."""

    def __init__(self, device: str, expected: str) -> None:
        command = ["dd", f"if={device}", "iflag=direct", f"bs={BLOCK}"]
        super().__init__("read", device, command, device_fd=0)
        self._expected = expected

    def _watch(self) -> None:
        digest, size = hashlib.sha256(), 0
        assert self._process.stdout is not None
        while chunk := self._process.stdout.read(BLOCK):
            digest.update(chunk)
            size += len(chunk)
        words = self._words()
        self.outcome = Outcome(self._process.wait(), words, digest.hexdigest() == self._expected, size)


class WriteDd(Dd):
    """Writes random bytes over the whole device and compares what lies in the host's file then."""

    def __init__(self, device: str, pattern: Path, size_bytes: int, host_file: Path) -> None:
        pattern.write_bytes(os.urandom(size_bytes))
        command = ["dd", f"if={pattern}", f"of={device}", "oflag=direct", f"bs={BLOCK}", "conv=notrunc,fsync"]
        super().__init__("write", device, command, device_fd=1)
        self._pattern, self._host_file, self._size = pattern, host_file, size_bytes

    def _watch(self) -> None:
        words = self._words()
        status = self._process.wait()
        right = self._host_file.read_bytes() == self._pattern.read_bytes()
        self.outcome = Outcome(status, words, right, self._size)


def in_flight(device: str) -> int:
    """Requests of a block device that the kernel waits for (/sys/block/NAME/inflight: reads, writes)."""
    text = Path(f"/sys/block/{Path(device).name}/inflight").read_text()
    return sum(int(number) for number in text.split())


def completions(device: str) -> int:
    """Reads and writes completed so far (/sys/block/NAME/stat, fields 1 and 5)."""
    fields = Path(f"/sys/block/{Path(device).name}/stat").read_text().split()
    return int(fields[0]) + int(fields[4])
