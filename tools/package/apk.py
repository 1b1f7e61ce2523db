"""An Alpine package (apk v2: two gzip'd tars in one file) from tools.package.tree, with OpenRC scripts.

Unsigned, so `apk add --allow-untrusted` installs it. Format: https://wiki.alpinelinux.org/wiki/Apk_spec. Written here
and not by abuild, which is there only on Alpine; the tests look at its structure.
"""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tools.package.tree import Installed, installed
from tools.version import VERSION

DEPENDS = ("python3>=3.11", "py3-pyzmq", "py3-msgpack", "py3-psutil", "py3-usb", "py3-rich", "libusb")
_EPOCH = 1704067200  # the same bytes for the same tree
_INFO = """\
# Made by replug's own builder
pkgname = replug
pkgver = {version}-r0
pkgdesc = Block devices of a USB gadget whose bytes lie on the USB host
builddate = {epoch}
size = {size}
arch = noarch
license = MIT
{depends}
datahash = {datahash}
"""


def build(root: Path, destination: Path) -> Path:
    """Make the package from the source tree `root`; returns its path in the directory `destination`."""
    files = installed(root, openrc=True)
    data = gzip.compress(_data(files), 9, mtime=0)
    info = _INFO.format(
        version=VERSION,
        epoch=_EPOCH,
        size=sum(len(file.data) for file in files),
        depends="\n".join(f"depend = {name}" for name in DEPENDS),
        datahash=hashlib.sha256(data).hexdigest(),
    )
    destination.mkdir(parents=True, exist_ok=True)
    target = destination / f"replug-{VERSION}-r0.apk"
    target.write_bytes(gzip.compress(_control(info.encode()), 9, mtime=0) + data)
    return target


def _control(info: bytes) -> bytes:
    """A tar without its end: apk reads on, into the next."""
    entry = tarfile.TarInfo(".PKGINFO")
    entry.size, entry.mtime, entry.mode = len(info), _EPOCH, 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT) + info + bytes(-len(info) % tarfile.BLOCKSIZE)


def _data(files: Sequence[Installed]) -> bytes:
    """Directories before what lies in them; each file with the checksum that apk verifies."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        directories = {str(parent) for file in files for parent in Path(file.path).parents if str(parent) != "."}
        for path in sorted(directories):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, entry.mtime, entry.uname = tarfile.DIRTYPE, 0o755, _EPOCH, "root"
            tar.addfile(entry)
        for file in files:
            entry = tarfile.TarInfo(file.path)
            entry.size, entry.mtime, entry.uname = len(file.data), _EPOCH, "root"
            entry.mode = 0o755 if file.executable else 0o644
            entry.pax_headers = {"APK-TOOLS.checksum.SHA1": hashlib.sha1(file.data, usedforsecurity=False).hexdigest()}
            tar.addfile(entry, io.BytesIO(file.data))
    return stream.getvalue()
