"""A board that starts from its replug disk: a real initramfs, a real systemd on the root, each process killed there.

Both makers of an initramfs that Debian has, each with our own module in it, from the package installed as a user would.
The PC is in the same machine: its side is started in the initramfs too, from the tests' own hook, with the image on a
disk that stays mounted below /run. At the end its power goes without a word: what the board has flushed must be there.
Issue 5, item 6. Run by `make boot` on this machine as root.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.package import deb

ROOT = Path(__file__).parents[2]
BOARD = ROOT / ".setup/board/root"
HERE = Path(__file__).parent
START_S = 1500  # emulated, and the root is read over an emulated cable
MADE_S = 900  # the board, by its packages, and its initramfs
pytestmark = [pytest.mark.timeout(MADE_S + START_S), pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")]
STORAGE_MODULES = "virtio_pci virtio_blk dummy_hcd ext4 crc32c_generic"

# In the initramfs, before the gadget side: the PC's side, which has the image.
_PC = """\
if [ ! -e /run/pc-up ]; then
    for module in {modules}; do modprobe -q $module; done
    mkdir -p /run/pc
    mount -t ext4 /dev/vda /run/pc &&
        REPLUG_ROOT_STORAGE=1 /usr/bin/replug host serve /run/pc/root.img --background && : >/run/pc-up
fi
"""
_PC_FILES = """\
#!/bin/sh
find /usr/lib/python3/dist-packages/usb -name '*.py'
ls /usr/lib/*/libusb-1.0.so.0 /usr/lib/*/libusb-1.0.so.0.*
"""
_UNIT = """\
[Unit]
Description=the proof
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /usr/local/lib/board_proof.py
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
"""


class Board:
    """A root file system in a directory, and what is made of it."""

    def __init__(self, work: Path) -> None:
        self.work, self.tree = work, work / "tree"
        subprocess.run(["cp", "-a", "--reflink=auto", BOARD, self.tree], check=True)
        [self.kernel] = (self.tree / "boot").glob("vmlinuz-*")
        self.release = self.kernel.name.removeprefix("vmlinuz-")

    def write(self, path: str, text: str, executable: bool = False) -> None:
        place = self.tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755 if executable else 0o644)

    def run(self, *command: str) -> str:
        """In the tree, as its own root."""
        inside = 'mount -t proc proc /proc; mount -t devtmpfs dev /dev 2>/dev/null; exec "$@"'
        words = ["unshare", "--mount", "chroot", str(self.tree), "/bin/sh", "-c", inside, "sh", *command]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout

    def install(self) -> None:
        """The package, by dpkg alone: what it depends on is there, or this fails."""
        package = deb.build(ROOT, self.work)
        shutil.copy(package, self.tree / "replug.deb")
        self.run("dpkg", "-i", "/replug.deb")
        (self.tree / "replug.deb").unlink()
        self.write("usr/local/lib/board_proof.py", (HERE / "board_proof.py").read_text())
        self.write("etc/systemd/system/proof.service", _UNIT)
        self.write("etc/fstab", "/dev/disk/by-id/replug-root / ext4 defaults 0 1\n")
        self.write("etc/hostname", "board\n")
        self.run("systemctl", "enable", "proof.service")
        self.run("systemctl", "mask", "systemd-timesyncd.service", "apt-daily.timer", "e2scrub_all.timer",
                 "e2scrub_reap.service", "getty-static.service")  # fmt: skip

    def by_dracut(self) -> Path:
        module = "usr/lib/dracut/modules.d/91pc"
        self.write(f"{module}/files.sh", _PC_FILES, True)
        self.write(f"{module}/pc.sh", _PC.format(modules=STORAGE_MODULES), True)
        setup = (
            "check() { return 255; }\ndepends() { echo replug; }\n"
            f"installkernel() {{ instmods {STORAGE_MODULES}; }}\n"
            'install() { inst_multiple mount mkdir $("$moddir/files.sh"); '
            'inst_hook initqueue/settled 05 "$moddir/pc.sh"; }\n'
        )
        self.write(f"{module}/module-setup.sh", setup, True)
        # What a kernel for any machine would bring, and this one has not, is left out: it is unpacked by an emulator.
        left_out = (
            "kernel-modules kernel-modules-extra kernel-network-modules lvm dm crypt mdraid multipath resume nvdimm"
        )
        self.run("dracut", "--force", "--no-hostonly", "--kver", self.release, "--add", "replug pc",
                 "--omit", left_out, "/boot/initrd.dracut")  # fmt: skip
        return self.tree / "boot/initrd.dracut"

    def by_initramfs_tools(self) -> Path:
        self.write("etc/replug/initramfs", "")
        self.write("etc/initramfs-tools/initramfs.conf", "MODULES=list\nBUSYBOX=auto\nCOMPRESS=zstd\nFSTYPE=ext4\n")
        self.write("etc/initramfs-tools/modules", "".join(f"{name}\n" for name in STORAGE_MODULES.split()))
        self.write("etc/initramfs-tools/pc-files", _PC_FILES, True)
        hook = (
            '#!/bin/sh\n[ "$1" != prereqs ] || exit 0\n/etc/initramfs-tools/pc-files | cpio -pdmL --quiet "$DESTDIR"\n'
        )
        self.write("etc/initramfs-tools/hooks/pc", hook, True)
        first = '#!/bin/sh\n[ "$1" != prereqs ] || exit 0\n'
        self.write("etc/initramfs-tools/scripts/local-top/pc", first + _PC.format(modules=STORAGE_MODULES), True)
        self.run("mkinitramfs", "-o", "/boot/initrd.tools", self.release)
        return self.tree / "boot/initrd.tools"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    subprocess.run([HERE / "board.sh", BOARD.parent], check=True, timeout=600)
    board = Board(tmp_path_factory.mktemp("board"))
    board.install()
    yield board
    shutil.rmtree(board.tree)


def start(board: Board, initrd: Path, work: Path, root: str) -> str:
    """Boot it, and wait until it has powered off. Returns what it said on the console."""
    pc = work / "pc"
    pc.mkdir()
    _make_ext4(pc / "root.img", "1G", board.tree, "-U", UUID)
    disk = work / "pc.img"
    _make_ext4(disk, "1600M", pc)
    (pc / "root.img").unlink()
    console = work / "console"
    options = (
        f"root={root} rd.replug=1 rd.retry=600 rootwait console=ttyS0 panic=-1 loglevel=5 "
        "systemd.show_status=1 mitigations=off"
    )
    command = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "1"]
    command += ["-m", "2G", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"]
    command += ["-kernel", str(board.kernel), "-initrd", str(initrd), "-append", options]
    command += ["-serial", f"file:{console}"]
    command += ["-drive", f"file={disk},format=raw,if=virtio"]
    try:
        subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", *command], check=True, timeout=START_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"not powered off within {START_S} s: {console.read_text(errors='replace')[-6000:]}")
    return console.read_text(errors="replace")


def _make_ext4(image: Path, size: str, tree: Path, *more: str) -> None:
    """A file system with what is in `tree`, without its /boot: the kernel does not come from the disk."""
    subprocess.run(["truncate", "-s", size, image], check=True)
    boot, away = tree / "boot", tree.parent / "boot.away"
    if boot.exists():
        boot.rename(away)
    try:
        subprocess.run(["mkfs.ext4", "-q", *more, "-d", tree, image], check=True, timeout=240)
    finally:
        if away.exists():
            away.rename(boot)


def _left_on_the_pc(work: Path) -> Path:
    """The board's image as the PC has it after its own power cut: the journal of its disk first."""
    disk, image = work / "pc.img", work / "left.img"
    journal = subprocess.run(["e2fsck", "-fy", disk], capture_output=True, text=True, timeout=240)
    assert journal.returncode in (0, 1), journal.stdout
    subprocess.run(["debugfs", "-R", f"dump /root.img {image}", disk], check=True, capture_output=True, timeout=240)
    return image


UUID = "8a1f0c5e-3d62-4b7e-9c10-5e2b7d9a4f31"


@pytest.mark.parametrize(
    ("maker", "root"), [("dracut", f"UUID={UUID}"), ("initramfs-tools", "/dev/disk/by-id/replug-root")]
)
def test_a_board_starts_from_its_replug_disk_and_survives_each_death_there(
    board: Board, tmp_path: Path, maker: str, root: str
) -> None:
    initrd = board.by_dracut() if maker == "dracut" else board.by_initramfs_tools()
    console = start(board, initrd, tmp_path, root)
    image = _left_on_the_pc(tmp_path)
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, f"{checked.stdout}\n{console[-4000:]}"
    told = subprocess.run(["debugfs", "-R", "cat /var/lib/proof/told.json", image], capture_output=True, text=True)
    assert told.stdout, f"the proof did not end: {console[-4000:]}"
    said = json.loads(told.stdout)
    print(json.dumps(said))
    assert said["root"] == "/dev/ublkb0"
    kinds = {role.split(".")[0] for role in said["killed"]}
    assert kinds == {"usb", "queue", "session", "watchdog", "spawner", "twin"}
    assert set(said["both"]) == {"spawner", "twin"}
    assert all(one["spared"] for one in said["killed"].values()), "systemd would kill it before the root is unmounted"
    assert "I/O error" not in console and "Remounting filesystem read-only" not in console
