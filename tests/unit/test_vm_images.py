"""What the guest is made of: module order, the kernel inside a bzImage, the cache, and what is said when lacking."""

import json
import struct
import subprocess
from pathlib import Path

import pytest

from common.errors import Exit
from tools.vm import images
from tools.vm.apt import unpack
from tools.vm.arch import Arch
from tools.vm.foreign import ensure_root, pins
from tools.vm.images import Lacking, depends, ensure_image, kernel_payload, load_order, module_name

NEEDS = {
    "ext4": ("jbd2", "mbcache", "crc16"),
    "jbd2": (),
    "mbcache": (),
    "crc16": ("crc16",),
    "dummy_hcd": ("usbcore", "udc_core"),
    "usbcore": ("usb_common",),
    "udc_core": ("usb_common",),
    "usb_common": (),
}


def test_every_module_comes_after_what_it_needs_and_only_once() -> None:
    order = load_order(NEEDS, ["dummy_hcd", "usbcore"])
    assert order == ["usb_common", "usbcore", "udc_core", "dummy_hcd"]


def test_built_in_modules_are_not_loaded() -> None:
    assert load_order(NEEDS, ["ext4"]) == ["jbd2", "mbcache", "ext4"]


def test_module_the_cache_does_not_hold_is_named() -> None:
    with pytest.raises(KeyError, match="btrfs"):
        load_order(NEEDS, ["btrfs"])


@pytest.mark.parametrize("text", ["udc-core", "udc_core", "kernel/drivers/usb/gadget/udc/udc-core.ko.xz"])
def test_a_module_has_one_name_however_it_is_spelled(text: str) -> None:
    assert module_name(text) == "udc_core"


def test_depends_are_read_from_modinfo() -> None:
    assert depends(b"\x7fELF..license=GPL\0depends=udc-core,usbcore\0retpoline=Y\0") == ("udc_core", "usbcore")
    assert depends(b"\0depends=\0") == ()


def bzimage(payload: bytes, setup_sectors: int = 3) -> bytes:
    start = bytearray((setup_sectors + 1) * 512)
    start[0x1F1] = setup_sectors
    start[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", start, 0x248, 16, len(payload))
    return bytes(start) + b"decompressor...." + payload + b"behind"


def test_kernel_payload_is_found_by_the_setup_header() -> None:
    assert kernel_payload(bzimage(b"packed vmlinux")) == b"packed vmlinux"


@pytest.mark.parametrize("data", [b"", b"MZ" + bytes(2000), bzimage(b"packed")[:-10]])
def test_what_is_no_bzimage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a bzImage"):
        kernel_payload(data)


def test_missing_tool_is_named_with_its_package_and_exit_status_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Lacking, match=r"^qemu-system-x86_64: not found") as told:
        images.require(("qemu-system-x86_64", "qemu-system-x86"))
    assert str(told.value).endswith("'apt-get install qemu-system-x86'")
    assert told.value.status is Exit.LACKING


def test_filled_cache_is_used_without_any_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / "index.json").write_text(json.dumps({"release": "6.12.0", "needs": {"9p": ["netfs"], "netfs": []}}))
    (tmp_path / f"guest-v{images.FORMAT}.current").write_text("entry")
    image = ensure_image(tmp_path, lambda _: None)
    assert (image.release, image.load_order(["9p"])) == ("6.12.0", ["netfs", "9p"])


def test_cache_entry_without_index_is_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / f"guest-v{images.FORMAT}.current").write_text("gone")
    with pytest.raises(Lacking, match=r"^apt-get: not found"):
        ensure_image(tmp_path, lambda _: None)


def test_cache_directory_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLUG_CACHE", "/var/cache/replug")
    assert images.cache_directory() == Path("/var/cache/replug")
    monkeypatch.delenv("REPLUG_CACHE")
    assert images.cache_directory() == Path.home() / ".cache" / "replug"


LOCK = """# pins
msgpack==1.2.4 \\
    --hash=sha256:aa
mypy==2.4.1 \\
    --hash=sha256:bb
pyzmq==27.3.0 \\
    --hash=sha256:cc \\
    --hash=sha256:dd
"""


def test_a_foreign_root_gets_the_wheels_that_are_pinned_with_their_hashes_and_no_others() -> None:
    [last, first] = pins(LOCK, ["pyzmq", "msgpack"]).split("\n\n")
    assert last == "pyzmq==27.3.0 \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd"
    assert first == "msgpack==1.2.4 \\\n    --hash=sha256:aa\n"
    with pytest.raises(Lacking, match=r"does not pin rich, psutil: run 'make lock'"):
        pins(LOCK, ["rich", "msgpack", "psutil"])


def test_a_foreign_root_needs_the_source_tree(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match=r"^--arch arm64: requirements.lock is not here"):
        ensure_root(tmp_path, Arch.ARM64, tmp_path / "requirements.lock", print)


def test_an_arm64_kernel_is_taken_as_it_is(tmp_path: Path) -> None:
    kernel = b"MZ" + bytes(54) + b"ARM\x64" + bytes(100)
    for path in ("boot/vmlinuz-6.12.0-arm64", "bin/busybox", "lib/modules/6.12.0-arm64/modules.builtin"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(kernel)
    builtin = "".join(f"kernel/{name}.ko\n" for name in images.MODULES if name != "crc32c_intel")
    (tmp_path / "lib/modules/6.12.0-arm64/modules.builtin").write_text(builtin)
    (tmp_path / "made").mkdir()
    images._make_entry(tmp_path, tmp_path / "made", Arch.ARM64)
    assert (tmp_path / "made/vmlinux").read_bytes() == kernel


def test_a_package_is_unpacked_through_the_links_of_its_root(tmp_path: Path) -> None:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/bin").symlink_to("usr/bin")
    (tmp_path / "pack/DEBIAN").mkdir(parents=True)
    (tmp_path / "pack/DEBIAN/control").write_text(
        "Package: a\nVersion: 1\nArchitecture: arm64\nMaintainer: a <a@b>\nDescription: a\n"
    )
    (tmp_path / "pack/bin").mkdir()
    (tmp_path / "pack/bin/a").write_text("here")
    subprocess.run(["dpkg-deb", "-b", tmp_path / "pack", tmp_path / "a.deb"], check=True, stdout=subprocess.DEVNULL)
    unpack(tmp_path / "a.deb", tmp_path / "root")
    assert (tmp_path / "root/bin").is_symlink() and (tmp_path / "root/usr/bin/a").read_text() == "here"
    with pytest.raises(Lacking, match="cannot be unpacked"):
        unpack(tmp_path / "gone.deb", tmp_path / "root")
