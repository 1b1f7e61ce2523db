"""What holds for every source, run on all of them: the same bytes, the same errnos, nothing advertised that is not."""

import errno
import importlib.util
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from host.source.interface import Can, Source
from host.source.opening import open_source
from host.source.spec import parse
from tests.unit.test_source_http import Server

SIZE = 1 << 20
NO_FSSPEC = importlib.util.find_spec("fsspec") is None
_MARK = pytest.mark.skipif(NO_FSSPEC, reason="fsspec is an extra, and not installed here: pip install 'replug[fsspec]'")
ALL = (
    *("file", "file-ro", "random", "http", "overlay", "overlay-twice", "overlay-http", "fault", "fault-http"),
    pytest.param("fsspec", marks=_MARK),
    pytest.param("overlay-fsspec", marks=_MARK),
    pytest.param("https", marks=pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl for a certificate")),
    "device",
)
Open = Callable[[str], Source]
WEB: list[Server] = []
LOOPS: dict[Path, str] = {}  # by their images


def text_of(kind: str, where: Path) -> str:
    image = where / "image"
    if not image.exists():
        image.write_bytes(random.Random(1).randbytes(SIZE))
    if kind == "device":
        return LOOPS.get(image) or LOOPS.setdefault(image, loop_of(image))
    return {
        "file": f"{image}",
        "https": WEB[-1].url,
        "file-ro": f"file:{image}?ro",
        "random": "random:seed?size=1M",
        "http": WEB[0].url,
        "fsspec": f"fsspec:file://{image}",
        "overlay-fsspec": f"overlay:{where}/map?over=fsspec:file://{image}",
        "overlay-http": f"overlay:{where}/map?over={WEB[0].url}",
        "fault-http": f"fault:{where}/switch?error=EIO&over={WEB[0].url}",
        "overlay": f"overlay:{where}/map?over={image}",
        "overlay-twice": f"overlay:{where}/map2?over=overlay:{where}/map1?over=random:7?size=1M",
        "fault": f"fault:{where}/switch?error=EIO&over={image}",
    }[kind]


def loop_of(image: Path) -> str:
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    return made.stdout.strip()


@pytest.fixture(autouse=True)
def loops() -> Iterator[None]:
    """Those that a test has made end with it."""
    yield
    while LOOPS:
        subprocess.run(["losetup", "-d", LOOPS.popitem()[1]], check=True)


@pytest.fixture(scope="module", autouse=True)
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Web servers with an object of the same size, the second one by TLS where it can be; WEB names them."""
    WEB.extend((Server(), Server()))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if shutil.which("openssl"):
            patch.setenv("SSL_CERT_FILE", str(WEB[1].secure(tmp_path_factory.mktemp("tls"))))
        for server in WEB:
            server.bytes = random.Random(1).randbytes(SIZE)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            for end in (server.server_close, thread.join, server.shutdown):
                stack.callback(end)
        yield
    WEB.clear()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    sources: list[Source] = []

    def open_(text: str) -> Source:
        sources.append(open_source(parse(text), False))
        return sources[-1]

    yield open_
    for source in sources:
        source.close()


@pytest.fixture(params=ALL)
def source(request: pytest.FixtureRequest, opened: Open, tmp_path: Path) -> Source:
    return opened(text_of(request.param, tmp_path))


def read(source: Source, offset: int = 0, size: int = SIZE) -> bytes:
    into = bytearray(size)
    source.read(offset, memoryview(into))
    return bytes(into)


def error_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as raised:
        call()
    return raised.value.errno


# -- what works ------------------------------------------------------------------------------------------------------
def test_reads_in_any_order_and_size_are_parts_of_the_same_bytes(source: Source) -> None:
    whole, rng = read(source), random.Random(2)
    assert len(set(whole)) > 100
    for _ in range(100):
        first = rng.randrange(SIZE // 512)
        count = rng.randint(1, min(300, SIZE // 512 - first))
        assert read(source, first * 512, count * 512) == whole[first * 512 : (first + count) * 512]


def test_writes_flushes_and_zeroes_do_what_a_plain_buffer_does(source: Source) -> None:
    if source.read_only:
        assert error_of(lambda: source.write(0, memoryview(bytes(512)))) == errno.EROFS
        assert error_of(lambda: source.discard(0, 512)) == errno.EROFS
        assert error_of(lambda: source.write_zeroes(0, 512)) == errno.EROFS
        source.flush()
        return
    model, rng = bytearray(read(source)), random.Random(3)
    for step in range(150):
        first = rng.randrange(SIZE // 512)
        count = rng.randint(1, min(40, SIZE // 512 - first))
        start, end = first * 512, (first + count) * 512
        if step % 5 == 4:
            source.write_zeroes(start, end - start, unmap=step % 2 == 0)
            model[start:end] = bytes(end - start)
        else:
            model[start:end] = rng.randbytes(end - start)
            source.write(start, memoryview(bytes(model[start:end])))
        if step % 20 == 19:
            source.flush()
        assert read(source, start, end - start) == model[start:end]
    assert read(source) == bytes(model)


def test_discard_is_advertised_where_it_works_and_refused_elsewhere(source: Source) -> None:
    if source.read_only:
        assert Can.DISCARD not in source.can
    elif Can.DISCARD in source.can:
        before = read(source)
        source.discard(8192, 8192)
        after = read(source)
        assert after[8192:16384] in (bytes(8192), before[8192:16384])
        assert after[:8192] + after[16384:] == before[:8192] + before[16384:]
    else:
        assert error_of(lambda: source.discard(0, 512)) == errno.EOPNOTSUPP


@pytest.mark.parametrize("kind", ALL)
def test_opened_anew_it_is_the_same_disk_with_the_same_bytes(kind: str, tmp_path: Path) -> None:
    before = open_source(parse(text_of(kind, tmp_path)), False)
    if not before.read_only:
        before.write(512, memoryview(b"kept" * 128))
    told = (before.geometry, before.identity, before.can, read(before))
    before.close()
    after = open_source(parse(text_of(kind, tmp_path)), False)
    assert (after.geometry, after.identity, after.can, read(after)) == told
    after.close()


def test_writes_to_neighbouring_blocks_at_once_are_all_there(source: Source) -> None:
    if source.read_only:
        return
    lanes = [threading.Thread(target=_write_every_fourth, args=(source, lane)) for lane in range(4)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join(30)
    assert read(source, 0, 512 * 512) == b"".join(bytes([1 + n % 4]) * 512 for n in range(512))


def _write_every_fourth(source: Source, lane: int) -> None:
    for block in range(lane, 512, 4):
        source.write(block * 512, memoryview(bytes([1 + lane]) * 512))


# -- what does not ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 100), (1, 512), (SIZE, 512), (SIZE - 512, 1024), (-512, 512)])
def test_a_wrong_length_and_past_the_end_are_einval_and_touch_nothing(source: Source, offset: int, size: int) -> None:
    before = read(source)
    assert error_of(lambda: source.read(offset, memoryview(bytearray(size)))) == errno.EINVAL
    assert error_of(lambda: source.write(offset, memoryview(bytes(size)))) == errno.EINVAL
    assert error_of(lambda: source.discard(offset, size)) == errno.EINVAL
    assert error_of(lambda: source.write_zeroes(offset, size)) == errno.EINVAL
    assert read(source) == before


def test_memory_is_bounded_whatever_is_read_and_written(source: Source) -> None:
    into = memoryview(bytearray(128 * 1024))
    read(source)  # what a remote one keeps is kept by now
    tracemalloc.start()
    for _ in range(10):
        for offset in range(0, SIZE, len(into)):
            source.read(offset, into)
            if not source.read_only:
                source.write(offset, into)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * 1024, f"{peak} bytes for 10 MiB"


# -- errors of what lies below ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["file", "overlay", "fault"])
def test_an_image_cut_short_under_us_is_eio_past_the_cut_and_nothing_else(
    kind: str, opened: Open, tmp_path: Path
) -> None:
    source = opened(text_of(kind, tmp_path))
    before = read(source)
    os.truncate(tmp_path / "image", SIZE // 2)
    assert error_of(lambda: read(source, SIZE // 2 - 512, 1024)) == errno.EIO
    assert read(source, 0, SIZE // 2) == before[: SIZE // 2]


def test_a_web_object_that_breaks_off_fails_what_needs_it_with_that_errno_and_leaves_the_overlay_as_it_was(
    opened: Open, tmp_path: Path
) -> None:
    source = opened(text_of("overlay-http", tmp_path))
    source.write(8192, memoryview(b"k" * 4096))
    server = WEB[0]
    server.mood, server.ill = "reset", 1000
    try:
        assert error_of(lambda: source.write(512, memoryview(b"x" * 512))) == errno.ECONNRESET, "the rest is below"
        assert read(source, 8192, 4096) == b"k" * 4096, "what lies here is read without it"
        source.write(16384, memoryview(b"w" * 4096))
    finally:
        server.ill = 0
    assert read(source, 0, 4096) == server.bytes[:4096] and read(source, 16384, 4096) == b"w" * 4096


@pytest.mark.parametrize("kind", ["file", "fault"])
def test_a_write_behind_a_cut_is_eio_and_does_not_make_what_was_cut_off_zeroes(
    kind: str, opened: Open, tmp_path: Path
) -> None:
    source = opened(text_of(kind, tmp_path))
    os.truncate(tmp_path / "image", SIZE // 2)
    for act in (
        lambda: source.write(SIZE - 4096, memoryview(bytes(4096))),
        lambda: (
            source.write_now(SIZE - 4096, memoryview(bytes(4096))) or source.write(SIZE // 2, memoryview(bytes(512)))
        ),
        lambda: source.write_zeroes(SIZE // 2 - 4096, 8192),
        lambda: read(source, SIZE // 2, 512),
    ):
        assert error_of(act) == errno.EIO
    assert (tmp_path / "image").stat().st_size == SIZE // 2
    source.write(SIZE // 2 - 4096, memoryview(b"x" * 4096))
    assert read(source, SIZE // 2 - 4096, 4096) == b"x" * 4096


@pytest.mark.parametrize("kind", ["file", "overlay"])
def test_a_full_disk_is_told_exactly_and_reads_go_on(
    kind: str, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(text_of(kind, tmp_path))
    before = read(source)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        assert error_of(lambda: source.write(4096, memoryview(bytes(4096)))) == errno.ENOSPC
    assert read(source) == before
    source.write(4096, memoryview(bytes(4096)))
    assert read(source, 4096, 4096) == bytes(4096)


def test_an_overlay_on_a_full_tmpfs_loses_nothing_and_its_flush_does_not_fail(opened: Open, tmp_path: Path) -> None:
    """Its map wants pages too. A FLUSH that failed for want of one would fail the export for good."""
    small = tmp_path / "small"
    small.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    text, written = f"overlay:{small}/map?over=random:7?size=1M", 0
    try:
        source = open_source(parse(text), False)
        model = bytearray(read(source))

        def fill() -> None:
            nonlocal written
            for start in range(0, SIZE, 4096):
                source.write(start, memoryview(bytes([1 + start // 4096 % 250]) * 4096))
                model[start : start + 4096] = bytes([1 + start // 4096 % 250]) * 4096
                written += 4096

        assert error_of(fill) == errno.ENOSPC
        assert 32768 <= written < 65536
        source.flush()
        assert read(source) == model
        source.close()
        source = open_source(parse(text), False)
        assert read(source) == model
        subprocess.run(["mount", "-o", "remount,size=2m", small], check=True)
        source.write(written, memoryview(b"more" * 1024))
        model[written : written + 4096] = b"more" * 1024
        source.flush()
        assert read(source) == model
        source.close()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("kind", ["file", "overlay"])
def test_the_kernels_own_limit_of_a_file_is_told_as_efbig(kind: str, opened: Open, tmp_path: Path) -> None:
    source = opened(text_of(kind, tmp_path))
    before, limits = read(source), resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        assert error_of(lambda: source.write(65536, memoryview(bytes(4096)))) == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert read(source) == before


# -- fault: ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "ETIMEDOUT"])
def test_a_fault_tells_exactly_its_errno_while_the_switch_is_there(name: str, opened: Open, tmp_path: Path) -> None:
    text_of("file", tmp_path)
    source = opened(f"fault:{tmp_path}/switch?error={name}&ops=read,flush&over={tmp_path}/image")
    before = read(source)
    (tmp_path / "switch").touch()
    assert error_of(lambda: read(source)) == getattr(errno, name)
    assert error_of(source.flush) == getattr(errno, name)
    source.write(0, memoryview(before[:512]))
    (tmp_path / "switch").unlink()
    source.flush()
    assert read(source) == before


def test_a_torn_write_has_done_its_first_half_and_a_short_read_has_it(opened: Open, tmp_path: Path) -> None:
    text_of("file", tmp_path)
    torn = opened(f"fault:{tmp_path}/switch?error=EIO&ops=write&torn&over={tmp_path}/image")
    before = read(torn, 0, 8192)
    (tmp_path / "switch").touch()
    assert error_of(lambda: torn.write(0, memoryview(b"x" * 8192))) == errno.EIO
    assert read(torn, 0, 8192) == b"x" * 4096 + before[4096:]
    torn.close()
    torn.close = lambda: None  # type: ignore[method-assign]
    short = opened(f"fault:{tmp_path}/switch?short&over={tmp_path}/image")
    into = bytearray(8192)
    assert error_of(lambda: short.read(0, memoryview(into))) == errno.EIO
    assert bytes(into) == b"x" * 4096 + bytes(4096)


# -- a block device --------------------------------------------------------------------------------------------------
def test_a_block_device_is_zeroed_and_discarded_exactly_and_held_by_one(opened: Open, tmp_path: Path) -> None:
    loop = text_of("device", tmp_path)
    source = opened(loop)
    model = bytearray(read(source))
    assert (source.geometry.size_bytes, source.geometry.block_size) == (SIZE, 512)
    source.write(512, memoryview(b"w" * 1024))
    source.write_zeroes(8192, 4096)
    model[512:1536], model[8192:12288] = b"w" * 1024, bytes(4096)
    source.flush()
    assert read(source) == bytes(model)
    if Can.DISCARD in source.can:
        source.discard(65536, 65536)
        found = read(source)
        assert found[:65536] + found[131072:] == model[:65536] + model[131072:]
    assert error_of(lambda: open_source(parse(loop), False)) == errno.EBUSY
    source.close()
    source.close = lambda: None  # type: ignore[method-assign]
