"""Where libusb is, found once before any role is forked. No context is made here; host.usb.attachment does that.

The system's library by its soname, else the one that libusb-package brings. pyusb's own search asks ldconfig and a
compiler: a role that is being recovered must not wait for programs on the disk it may be serving.
"""

import ctypes

import usb.backend.libusb1
import usb.core
from usb.backend import IBackend

from common.errors import Exit, Refused

_SONAME = "libusb-1.0.so.0"


def _locate() -> str | None:
    try:
        ctypes.CDLL(_SONAME)
        return _SONAME
    except OSError:
        try:
            import libusb_package
        except ImportError:
            return None
        path = libusb_package.get_library_path()
        return None if path is None else str(path)


PATH = _locate()


def require() -> None:
    """Refused if this machine has no libusb."""
    if PATH is None:
        cure = "install libusb-1.0-0, or replug's extra 'libusb'"
        raise Refused(f"libusb: no {_SONAME} here: {cure}", Exit.LACKING)


def fresh_backend() -> IBackend:
    """A backend with a libusb context of its own (libusb_init), which looks at all devices anew.

    Without udevd a context that exists already never learns of new devices. Refused if there is no library.
    """
    require()
    module = usb.backend.libusb1
    if module._lib is None:
        # Once: until pyusb has declared the functions of a library that it loads again, the end of any older object
        # (garbage is collected at any time) would call them with pointers cut to 32 bits.
        backend = module.get_backend(find_library=lambda name: PATH)
        module._lib_object = None  # else pyusb keeps this first context for ever
        if backend is None:
            raise Refused(f"libusb: {PATH} cannot be loaded", Exit.LACKING)
        return backend
    try:
        return module._LibUSB(module._lib)
    except usb.core.USBError as error:
        raise Refused(f"libusb: no new context: {error}", Exit.LACKING) from None
