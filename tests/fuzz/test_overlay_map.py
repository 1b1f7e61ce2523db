"""An overlay's file of any bytes is refused or read: a source of the right size, an errno, never more memory."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import Refused
from common.limits import PAGE
from host.source.noise import NoiseSource
from host.source.overlay import open_overlay
from tests.fuzz.hurt import hurt

SIZE = 4 * PAGE
BASE = NoiseSource("base", SIZE)
HEAD, BOOT, MAPS = slice(0, 60), slice(PAGE, PAGE + 40), slice(2 * PAGE, 2 * PAGE + 8)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("overlay") / "map"
    source = open_overlay(path, BASE, read_only=False)
    source.write(PAGE, memoryview(bytes(PAGE)))
    source.close()
    return path.read_bytes()


def look(path: Path, content: bytes) -> bytes | None:
    """Every block, read, written and discarded; None if it is refused."""
    path.write_bytes(content)
    try:
        source = open_overlay(path, BASE, read_only=False)
    except Refused as error:
        assert "\n" not in str(error)
        return None
    try:
        into = bytearray(SIZE)
        assert source.geometry.size_bytes == SIZE
        source.read(0, memoryview(into))
        source.write(512, memoryview(bytes(512)))
        source.discard(0, SIZE)
        source.flush()
    except OSError as error:
        assert error.errno
        return b""
    finally:
        source.close()
    assert path.stat().st_size == len(content)
    return bytes(into)


def test_the_good_map_is_good(good: bytes, tmp_path: Path) -> None:
    read = look(tmp_path / "map", good)
    assert read is not None and read[PAGE : 2 * PAGE] == bytes(PAGE) and read[:PAGE] != bytes(PAGE)


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("part", [HEAD, BOOT, MAPS], ids=["head", "boot id", "maps"])
def test_a_hurt_map_is_refused_or_read(part: slice, data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    bad = data.draw(hurt(good[part]))
    size = part.stop - part.start
    content = good[: part.start] + bad[:size].ljust(size, b"\xff") + good[part.stop :]
    read = look(tmp_path / "map", content)
    assert part is not HEAD or read is None or content == good, "a head that is not its own is taken"


@pytest.mark.parametrize("size", [0, 1, 63, 64, PAGE, 2 * PAGE, 4 * PAGE, 5 * PAGE + 1])
def test_a_map_cut_short_is_refused_or_an_errno(size: int, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "map"
    path.write_bytes(good[:size])
    try:
        source = open_overlay(path, BASE, read_only=True)
        source.read(0, memoryview(bytearray(SIZE)))
    except (Refused, OSError) as error:
        assert "\n" not in str(error)
