"""The guest's kernel, modules and shell, fetched once from Debian and kept in a cache directory.

Packages are downloaded with apt and unpacked with dpkg, never installed. What a boot needs is
decompressed here once (a second faster at each boot) and described by an index; a cache entry appears by
one rename, under a lock, so parallel runs neither fight nor see half of it. Building the initrd from it
is `initrd`'s business.
"""

from __future__ import annotations

import fcntl
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.vm.apt import Apt, Lacking
from tools.vm.arch import BOARDS, Arch
from tools.vm.kernels import SUPPLIES, Kernel

__all__ = ["Image", "Lacking", "ensure_image", "require"]

FORMAT = 2
"""Raise it when the layout of a cache entry or the list of modules changes: older entries are left alone."""

MODULES = (
    # the way to the machine's files
    "virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay",
    # what replug drives
    "ublk_drv", "configfs", "udc_core", "libcomposite", "usb_f_fs", "usb_f_mass_storage", "dummy_hcd",
    "usbmon", "usb_storage", "sd_mod", "nbd", "null_blk",
    # what users put on the disk; ext4 asks for crc32c by name at mount time, not as a dependency
    "crc32c_generic", "crc32c_intel", "ext4", "xfs", "vfat", "nls_cp437", "nls_ascii", "loop", "dm_mod",
)  # fmt: skip

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_XZ_MAGIC = b"\xfd7zXZ\x00"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Image:
    """One unpacked kernel: an ELF vmlinux, a static busybox, and modules with what each needs first."""

    directory: Path
    release: str
    needs: Mapping[str, tuple[str, ...]]
    arch: Arch = Arch.AMD64

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def busybox(self) -> Path:
        return self.directory / "busybox"

    def module_file(self, name: str) -> Path:
        return self.directory / "modules" / f"{name}.ko"

    def load_order(self, wanted: Iterable[str]) -> list[str]:
        """Every module to load, each after what it needs. Built-in ones are left out.

        Raises KeyError for a module the cache does not hold.
        """
        return load_order(self.needs, wanted)


def load_order(needs: Mapping[str, tuple[str, ...]], wanted: Iterable[str]) -> list[str]:
    """Depth-first order over *needs*; a module that maps to itself only is built in and left out."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order or needs[name] == (name,):
            return
        for needed in needs[name]:
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(module_name(name))
    return order


def module_name(text: str) -> str:
    """The kernel's one spelling of a module: no path, no suffix, `_` for `-`."""
    return text.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def depends(module: bytes) -> tuple[str, ...]:
    """What a decompressed module needs loaded first (`depends=` in its .modinfo section)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode("ascii") if found else ""
    return tuple(module_name(name) for name in names.split(",") if name)


def kernel_payload(bzimage: bytes) -> bytes:
    """The compressed vmlinux inside a bzImage (struct setup_header, Documentation/arch/x86/boot.rst).

    Raises ValueError if the image has no such header.
    """
    if bzimage[0x202:0x206] != b"HdrS":
        raise ValueError("not a bzImage: no HdrS at 0x202")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if len(payload) != length:
        raise ValueError("not a bzImage: payload cut short")
    return payload


def cache_directory() -> Path:
    """REPLUG_CACHE, or ~/.cache/replug."""
    told = os.environ.get("REPLUG_CACHE")
    return Path(told).absolute() if told else Path.home() / ".cache" / "replug"


def ensure_image(
    cache: Path, log: Log, refresh: bool = False, arch: Arch = Arch.AMD64, kernel: Kernel = Kernel.DEBIAN_12
) -> Image:
    """The cached image; downloads and unpacks it first if there is none (or *refresh* asks for the newest).

    Raises Lacking if a tool, a package or the network is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    current = cache / f"{_prefix(arch, kernel)}.current"
    with locked(cache / "guest.lock"):
        if not refresh and (image := _load(current, arch)):
            return image
        require(("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg", "dpkg"), ("zstd", "zstd"))
        with tempfile.TemporaryDirectory(prefix="apt-", dir=cache) as state:
            entry = _newest(cache, _apt(arch, kernel, Path(state)), kernel, log)
        temporary = current.with_suffix(".new")
        temporary.write_text(entry.name)
        temporary.replace(current)
        image = _load(current, arch)
        assert image is not None
        return image


def _apt(arch: Arch, kernel: Kernel, state: Path) -> Apt:
    source = SUPPLIES[kernel].source
    return Apt(arch, state if arch.foreign or source else None, source)


def _prefix(arch: Arch, kernel: Kernel) -> str:
    of_arch = () if arch is Arch.AMD64 else (arch.value,)
    return "-".join((f"guest-v{FORMAT}", *of_arch, *(() if kernel is Kernel.DEBIAN_12 else (kernel.value,))))


def _load(current: Path, arch: Arch) -> Image | None:
    try:
        directory = current.parent / current.read_text().strip()
        index = json.loads((directory / "index.json").read_text())
    except FileNotFoundError:
        return None
    return Image(directory, index["release"], {name: tuple(needs) for name, needs in index["needs"].items()}, arch)


def _newest(cache: Path, apt: Apt, kernel: Kernel, log: Log) -> Path:
    if apt.state is not None:
        apt.update()
        return _newest_entry(cache, apt, kernel, log)
    try:
        return _newest_entry(cache, apt, kernel, log)
    except Lacking:
        # lists that are missing or old: a fresh machine's usual state
        if os.geteuid() != 0:
            raise
        log("updating apt's package lists")
        apt.update()
        return _newest_entry(cache, apt, kernel, log)


def _newest_entry(cache: Path, apt: Apt, kernel: Kernel, log: Log) -> Path:
    package = apt.kernel(SUPPLIES[kernel].meta.format(arch=apt.arch.value))
    entry = cache / f"{_prefix(apt.arch, kernel)}-{package}"
    if not (entry / "index.json").is_file():
        _fill(cache, entry, package, apt, kernel, log)
    return entry


def _fill(cache: Path, entry: Path, package: str, apt: Apt, kernel: Kernel, log: Log) -> None:
    with tempfile.TemporaryDirectory(prefix="filling-", dir=cache) as name:
        work = Path(name)
        log(f"fetching {package} and busybox-static (once, about 110 MB)")
        for one in apt.parts(package):
            apt.download(one, work)
        # A source of kernels has no shell: that is this machine's.
        (Apt(apt.arch) if apt.source else apt).download("busybox-static", work)
        log("unpacking the kernel")
        for archive in work.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, work / "root"], check=True)
            archive.unlink()
        made = work / "entry"
        made.mkdir()
        _make_entry(work / "root", made, apt.arch, kernel)
        shutil.rmtree(entry, ignore_errors=True)
        made.rename(entry)
    log(f"kernel ready in {entry}")


def _make_entry(root: Path, made: Path, arch: Arch, kernel: Kernel = Kernel.DEBIAN_12) -> None:
    release, vmlinuz, tree = _places(root)
    data = vmlinuz.read_bytes()
    (made / "vmlinux").write_bytes(data if _is_arm64_image(data) else _decompress(kernel_payload(data)))
    shutil.copy(root / "bin" / "busybox", made / "busybox")
    wanted = [name for name in MODULES if name not in BOARDS[arch].lacks]
    needs = _unpack_modules(tree, made / "modules", wanted, SUPPLIES[kernel].built_in)
    (made / "index.json").write_text(json.dumps({"release": release, "needs": needs}, indent=1))


def _places(root: Path) -> tuple[str, Path, Path]:
    """Release, kernel and modules. A split kernel lies with its modules, and under /usr."""
    for vmlinuz in (root / "usr/lib/modules").glob("*/vmlinuz"):
        return vmlinuz.parent.name, vmlinuz, vmlinuz.parent
    [vmlinuz] = (root / "boot").glob("vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    trees = [root / place / release for place in ("lib/modules", "usr/lib/modules")]
    return release, vmlinuz, next(tree for tree in trees if (tree / "modules.builtin").is_file())


def _is_arm64_image(data: bytes) -> bool:
    """Uncompressed already (Documentation/arch/arm64/booting.rst)."""
    return data[56:60] == b"ARM\x64"


def _unpack_modules(
    tree: Path, target: Path, wanted: Iterable[str], also_built_in: frozenset[str]
) -> dict[str, tuple[str, ...]]:
    """Decompress *wanted* and all they need into *target*; a built-in one maps to itself alone."""
    target.mkdir()
    files = {module_name(path.name): path for path in tree.rglob("*.ko*")}
    listed = (tree / "modules.builtin").read_text().splitlines()
    built_in = {module_name(line) for line in listed} | also_built_in
    needs: dict[str, tuple[str, ...]] = {}
    todo = [module_name(name) for name in wanted]
    while todo:
        name = todo.pop()
        if name in needs:
            continue
        if name in built_in:
            needs[name] = (name,)
            continue
        module = _decompress(files[name].read_bytes())
        (target / f"{name}.ko").write_bytes(module)
        needs[name] = depends(module)
        todo.extend(needs[name])
    return needs


def _decompress(data: bytes) -> bytes:
    if data.startswith(_XZ_MAGIC):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(_ZSTD_MAGIC):
        # the kernel appends the unpacked size to its payload; zstd would call these four bytes an error
        done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False)
        if not done.stdout:
            raise Lacking("zstd: cannot unpack the kernel: install 'zstd' anew and try again")
        return done.stdout
    return data


def require(*tools: tuple[str, str]) -> None:
    """Raises Lacking unless each program is there; the pairs are (program, Debian package)."""
    for program, package in tools:
        if not shutil.which(program):
            raise Lacking(f"{program}: not found on this machine: 'apt-get install {package}'")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an flock on *path*, so that only one process fills or probes at a time."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
