"""`overlay:MAP?over=SOURCE`: copy on write. The source under it is only read; what is written lies in one sparse file.

The file: a head that never changes, a page with the boot id of the last host, two maps of one byte for each cluster of
4 KiB (1: it lies here), then the clusters, each at its own place. Why no cut can show bytes that nobody wrote:

- A cluster that is not here yet is written whole (the rest filled from below), and only then its byte in the *young*
  map. So whoever reads the young map of a killed process finds whole clusters: the page cache outlives the process.
- After a power cut the page cache's order is gone, so the young map counts only under the boot id that wrote it. FLUSH
  notes the young map, syncs, and then copies it to the *old* map and syncs again: the old map never says "here" of a
  cluster that is not on the disk. What was never flushed is as it was below; a cluster already here may hold either.
- The page of the old map that a FLUSH will write is reserved before a write that it covers is acknowledged: on a full
  disk the write is ENOSPC, and no FLUSH, which would fail the export for good.
- A discarded cluster is a hole in its place, and still here: zeroes, or after a cut what it was.
- A byte is a map entry: a map page torn anywhere is a map with fewer entries. A new boot empties the young map, syncs,
  and then writes its boot id.

So a process killed before a flush and a host rebooted before the next `host serve` lose what was never flushed.
"""

import contextlib
import os
import struct
from hashlib import sha256
from pathlib import Path
from threading import Lock
from zlib import crc32

from common.errors import Refused
from common.limits import PAGE
from host.source.identity import of_file
from host.source.interface import Can, Geometry, Source
from host.source.overlay_store import FileStore, Store

CLUSTER = PAGE
_HEAD = struct.Struct("<8sIIQ32sI")  # magic, version, cluster, bytes, sha256 of the fingerprint below, crc32 before it
_MAGIC, _VERSION = b"RPLGOVER", 1
_FLUSH_PAGES = 256  # map pages noted at a time: 1 MiB of memory for 4 GiB of written disk
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def open_overlay(path: Path, below: Source, read_only: bool) -> "OverlaySource":
    """Open the map, or make it if there is none. Refused if it belongs to another source or is no map."""
    head = _head(below)
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            FileStore.create(path, head, _data_start(below) + _clusters(below) * CLUSTER)
    store = FileStore(path)
    try:
        found = memoryview(bytearray(_HEAD.size))
        try:
            store.read(0, found)
        except OSError:
            raise Refused(f"{path}: not a map of an overlay: name one that does not exist yet") from None
        if bytes(found) != head:
            why = "was made over another source" if bytes(found[:8]) == _MAGIC else "is not a map of an overlay"
            raise Refused(f"{path}: {why}: name one that does not exist yet, or the source it was made over")
        identity = f"overlay {_identity(path)} over {below.identity}"
        return OverlaySource(store, below, _BOOT_ID.read_text().strip().encode(), identity, read_only)
    except BaseException:
        store.close()
        raise


def _identity(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return of_file(fd)
    finally:
        os.close(fd)


class OverlaySource(Source):
    """Holds nothing of the maps in memory but which of their pages changed since the last flush."""

    def __init__(self, store: Store, below: Source, boot_id: bytes, identity: str, read_only: bool = False) -> None:
        self._store, self._below = store, below
        # A block larger than a cluster would be torn between two map entries that a cut may separate.
        self.geometry = Geometry(below.geometry.size_bytes, below.geometry.block_size, CLUSTER)
        self.identity, self.can = identity, Can(0) if read_only else Can.WRITE | Can.WRITE_ZEROES
        if not read_only and store.punches:
            self.can |= Can.DISCARD
        self._map_bytes = _map_bytes(below)
        self._young, self._old, self._data = 2 * PAGE, 2 * PAGE + self._map_bytes, _data_start(below)
        self._writing, self._flushing = Lock(), Lock()
        self._changed: set[int] = set()  # pages of the young map
        self._adopt(sha256(boot_id).digest())

    def _adopt(self, boot: bytes) -> None:
        if self._get(PAGE, len(boot)) != boot:
            self._store.zero(self._young, self._map_bytes)
            self._store.sync()
            self._store.write(PAGE, boot)
        # A predecessor of this boot may have been killed between a write and its flush.
        for page in range(self._map_bytes // PAGE):
            if any(self._get(self._young + page * PAGE, PAGE)):
                self._changed.add(page)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._store.close()
            self._below.close()

    def _read(self, offset: int, into: memoryview) -> None:
        first = offset // CLUSTER
        here = self._here(first, -(-(offset + len(into)) // CLUSTER) - first)
        done = 0
        while done < len(into):
            cluster = (offset + done) // CLUSTER
            end = cluster + 1
            while end - first < len(here) and here[end - first] == here[cluster - first]:
                end += 1
            part = into[done : end * CLUSTER - offset]
            if here[cluster - first]:
                self._store.read(self._data + offset + done, part)
            else:
                self._below.read(offset + done, part)
            done += len(part)

    def _write(self, offset: int, data: memoryview) -> None:
        first = offset // CLUSTER
        count = -(-(offset + len(data)) // CLUSTER) - first
        if all(self._here(first, count)):
            self._store.write(self._data + offset, data)
            return
        with self._writing:  # else two writes to one new cluster would each fill it from below, over the other
            here = self._here(first, count)
            done = 0
            for cluster in range(first, first + count):
                start = offset + done - cluster * CLUSTER
                part = data[done : done + CLUSTER - start]
                if here[cluster - first] or len(part) == CLUSTER:
                    self._store.write(self._data + offset + done, part)
                else:
                    self._store.write(self._data + cluster * CLUSTER, self._filled(cluster, start, part))
                done += len(part)
            pages = set(range(first // PAGE, (first + count - 1) // PAGE + 1))
            for page in pages - self._changed:
                self._store.reserve(self._old + page * PAGE, PAGE)
            # Before the map: a flush that sees no change must not have missed one.
            self._changed |= pages
            self._store.write(self._young + first, b"\1" * count)

    def _filled(self, cluster: int, start: int, part: memoryview) -> memoryview:
        """The cluster as it lies below, with `part` at `start` in it."""
        whole = memoryview(bytearray(min(CLUSTER, self.geometry.size_bytes - cluster * CLUSTER)))
        if len(part) < len(whole):
            self._below.read(cluster * CLUSTER, whole)
        whole[start : start + len(part)] = part
        return whole

    def _discard(self, offset: int, size_bytes: int) -> None:
        """Clusters that lie here whole become holes, and stay here: the map needs no change, so no cut can matter.

        What lies below reads as before. A new cluster in the place of what is below would be a write, not a discard.
        """
        end = offset + size_bytes
        first, last = -(-offset // CLUSTER), -(-end // CLUSTER) if end == self.geometry.size_bytes else end // CLUSTER
        here = self._here(first, last - first) if last > first else b""
        cluster = 0
        while (cluster := here.find(1, cluster)) >= 0:
            over = here.find(0, cluster)
            over = len(here) if over < 0 else over
            self._store.zero(self._data + (first + cluster) * CLUSTER, (over - cluster) * CLUSTER)
            cluster = over

    def _write_zeroes(self, offset: int, size_bytes: int, unmap: bool) -> None:
        zeroes = memoryview(bytes(min(size_bytes, 64 * CLUSTER)))
        for start in range(0, size_bytes, len(zeroes)):
            self._write(offset + start, zeroes[: size_bytes - start])

    def _flush(self) -> None:
        with self._flushing:
            with self._writing:
                changed = sorted(self._changed)
                self._changed.clear()
            try:
                self._settle(changed)
            except OSError:
                with self._writing:
                    self._changed.update(changed)
                raise

    def _settle(self, changed: list[int]) -> None:
        for start in range(0, len(changed), _FLUSH_PAGES):
            noted = {page: self._get(self._young + page * PAGE, PAGE) for page in changed[start : start + _FLUSH_PAGES]}
            self._store.sync()  # every cluster that was noted was written before it was
            for page, young in noted.items():
                self._store.write(self._old + page * PAGE, _either(young, self._get(self._old + page * PAGE, PAGE)))
        self._store.sync()

    def _here(self, first: int, count: int) -> bytes:
        return _either(self._get(self._young + first, count), self._get(self._old + first, count))

    def _get(self, offset: int, size_bytes: int) -> bytes:
        into = bytearray(size_bytes)
        self._store.read(offset, memoryview(into))
        return bytes(into)


def _either(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _head(below: Source) -> bytes:
    size, print_ = below.geometry.size_bytes, sha256(below.fingerprint.encode(errors="surrogateescape")).digest()
    body = _HEAD.pack(_MAGIC, _VERSION, CLUSTER, size, print_, 0)[:-4]
    return body + crc32(body).to_bytes(4, "little")


def _clusters(below: Source) -> int:
    return -(-below.geometry.size_bytes // CLUSTER)


def _map_bytes(below: Source) -> int:
    return -(-_clusters(below) // PAGE) * PAGE


def _data_start(below: Source) -> int:
    return 2 * PAGE + 2 * _map_bytes(below)
