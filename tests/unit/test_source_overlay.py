"""An overlay whose file is cut after every prefix of its writes: killed (same boot) and powered off (another boot)."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.errors import Refused
from host.source.interface import Can
from host.source.noise import NoiseSource
from host.source.opening import open_source
from host.source.overlay import OverlaySource
from host.source.spec import parse

SIZE = 16 * 4096
BASE = NoiseSource("base", SIZE)
FILE = 4 * 4096 + SIZE


@dataclass
class Recorder:
    """A store in memory that remembers every write as (offset, bytes), and None for a sync."""

    punches = True
    content: bytearray = field(default_factory=lambda: bytearray(FILE))
    log: list[tuple[int, bytes] | None] = field(default_factory=list)

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = self.content[offset : offset + len(into)]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.log.append((offset, bytes(data)))
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, size_bytes: int) -> None:
        self.write(offset, bytes(size_bytes))

    def reserve(self, offset: int, size_bytes: int) -> None:
        pass

    def sync(self) -> None:
        self.log.append(None)

    def close(self) -> None:
        pass


def overlay(store: Recorder, boot: bytes = b"first") -> OverlaySource:
    return OverlaySource(store, BASE, boot, "test")


def blocks(source: OverlaySource) -> list[bytes]:
    into = bytearray(SIZE)
    source.read(0, memoryview(into))
    return [bytes(into[at : at + 512]) for at in range(0, SIZE, 512)]


@dataclass
class History:
    """What a user did: for each block all it ever held, and where in the log that was acknowledged or flushed."""

    store: Recorder
    writes: list[tuple[int, int, dict[int, bytes]]]  # log length before, after, what the blocks became
    flushes: list[tuple[int, int]]  # log length when it was acknowledged, how many writes it covers
    base: list[bytes]

    def allowed(self, cut: int, durable_only: bool) -> list[set[bytes]]:
        """What each block may hold when only `cut` entries of the log were made."""
        sure = [n for n, (_, end, _) in enumerate(self.writes) if end <= cut]
        if durable_only:
            sure = list(range(max((count for at, count in self.flushes if at <= cut), default=0)))
        allowed = [{block} for block in self.base]
        for number, (start, _, changes) in enumerate(self.writes):
            for block, data in changes.items():
                if number in sure:
                    allowed[block] = {data}
                elif start < cut:
                    allowed[block].add(data)
        return allowed


def lived(seed: int) -> History:
    store, rng = Recorder(), random.Random(seed)
    source = overlay(store)
    history = History(store, [], [], blocks(source))
    for _ in range(20):
        if rng.random() < 0.25:
            source.flush()
            history.flushes.append((len(store.log), len(history.writes)))
            continue
        first = rng.randrange(SIZE // 512)
        count = rng.randint(1, min(20, SIZE // 512 - first))
        if rng.random() < 0.3:
            start = len(store.log)
            source.discard(first * 512, count * 512)
            after = blocks(source)
            history.writes.append((start, len(store.log), {n: after[n] for n in range(first, first + count)}))
            continue
        changes, start = {first + n: rng.randbytes(512) for n in range(count)}, len(store.log)
        source.write(first * 512, memoryview(b"".join(changes.values())))
        history.writes.append((start, len(store.log), changes))
    return history


def reopened(log: list[tuple[int, bytes] | None], boot: bytes) -> list[bytes]:
    store = Recorder()
    for entry in log:
        if entry is not None:
            store.write(*entry)
    return blocks(overlay(store, boot))


@pytest.mark.parametrize("seed", range(8))
def test_killed_after_any_of_its_writes_it_has_every_acknowledged_one(seed: int) -> None:
    history = lived(seed)
    for cut in range(len(history.store.log) + 1):
        found, allowed = reopened(history.store.log[:cut], b"first"), history.allowed(cut, False)
        wrong = [n for n, block in enumerate(found) if block not in allowed[n]]
        assert not wrong, f"seed {seed}, cut after {cut}: blocks {wrong} hold what nobody wrote there"


def power_cuts(
    log: list[tuple[int, bytes] | None], cut: int, rng: random.Random
) -> Iterator[list[tuple[int, bytes] | None]]:
    """Everything before the last sync is there; of what followed any part is, in any order, torn at sectors."""
    synced = max((n + 1 for n, entry in enumerate(log[:cut]) if entry is None), default=0)
    for _ in range(6):
        late = [entry for entry in log[synced:cut] if rng.random() < 0.5]
        yield [*log[:synced], *late]
    map_first = [entry for entry in log[synced:cut] if entry is not None and entry[0] < 4 * 4096]
    yield [*log[:synced], *map_first]


@pytest.mark.parametrize("seed", range(8))
def test_powered_off_anywhere_it_has_every_flushed_write_and_never_what_nobody_wrote(seed: int) -> None:
    history, rng = lived(seed), random.Random(seed)
    for cut in range(len(history.store.log) + 1):
        allowed = history.allowed(cut, True)
        for log in power_cuts(history.store.log, cut, rng):
            found = reopened(log, b"second")
            wrong = [n for n, block in enumerate(found) if block not in allowed[n]]
            assert not wrong, f"seed {seed}, power cut after {cut}: blocks {wrong}"


def test_a_flush_after_a_kill_covers_what_the_killed_one_had_acknowledged() -> None:
    store = Recorder()
    overlay(store).write(512, memoryview(b"a" * 512))
    overlay(store).flush()
    assert blocks(overlay(store, b"second"))[1] == b"a" * 512


def test_discard_zeroes_whole_clusters_that_lie_here_and_nothing_else() -> None:
    store = Recorder()
    source = overlay(store)
    base = blocks(source)
    source.write(4096, memoryview(b"w" * 4 * 4096))  # clusters 1 to 4
    source.discard(4096 + 512, 3 * 4096)  # the rest of cluster 1, 2 and 3 whole, and a piece of 4
    expected = [*base[:8], *[b"w" * 512] * 8, *[bytes(512)] * 16, *[b"w" * 512] * 8, *base[40:]]
    assert blocks(source) == expected
    source.discard(0, 4096)  # lies below
    assert blocks(source) == expected
    source.write(2 * 4096 + 512, memoryview(b"n" * 512))  # into a hole
    expected[17] = b"n" * 512
    source.flush()
    assert blocks(overlay(store, b"second")) == expected


def test_discarded_space_is_given_back(tmp_path: Path) -> None:
    source = open_source(parse(f"overlay:{tmp_path}/m?over=random:1?size=4M"), False)
    if Can.DISCARD not in source.can:
        pytest.skip("this file system has no holes")
    source.write(0, memoryview(bytes(range(256)) * (4 << 12)))
    source.flush()
    full = (tmp_path / "m").stat().st_blocks
    source.discard(0, 4 << 20)
    source.flush()
    assert full * 512 > 4 << 20 and (tmp_path / "m").stat().st_blocks * 512 < 1 << 20
    source.close()


def test_a_file_system_without_holes_has_no_discard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.source.overlay_store.fallocated", lambda *_: False)
    source = open_source(parse(f"overlay:{tmp_path}/m?over=random:1?size=4M"), False)
    assert Can.DISCARD not in source.can
    source.close()


def test_a_map_of_another_source_and_a_file_that_is_no_map_are_refused(tmp_path: Path) -> None:
    open_source(parse(f"overlay:{tmp_path}/m?over=random:1?size=1M"), False).close()
    with pytest.raises(Refused, match="was made over another source"):
        open_source(parse(f"overlay:{tmp_path}/m?over=random:2?size=1M"), False)
    (tmp_path / "image").write_bytes(bytes(8192))
    with pytest.raises(Refused, match="is not a map of an overlay"):
        open_source(parse(f"overlay:{tmp_path}/image?over=random:2?size=1M"), False)
    assert (tmp_path / "image").read_bytes() == bytes(8192)


def test_two_overlays_share_one_image_and_one_map_is_never_served_twice(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"i" * 8192)
    one, two = (open_source(parse(f"overlay:{tmp_path}/{n}?over={tmp_path}/image"), False) for n in "ab")
    one.write(0, memoryview(b"1" * 512))
    into = bytearray(512)
    two.read(0, memoryview(into))
    assert bytes(into) == b"i" * 512 and (tmp_path / "image").read_bytes() == b"i" * 8192
    with pytest.raises(Refused, match="this overlay is already served"):
        open_source(parse(f"overlay:{tmp_path}/a?over={tmp_path}/image"), False)
    one.close()
    two.close()
