"""A root file system that switches under us: what we were started from was an initramfs, and the real root came after.

switch_root(8), systemd and run-init move /run, /dev, /sys and /proc into the new root and lay it over the old one. Only
who does that gets the new root; a process from before keeps the old one, whose directories are empty now: it sees no
runtime directory any more, so no successor could take a name and no lane could connect again. So each process of ours
looks, and follows. Looking up a mount point reads no disk: the kernel keeps the directories that others are mounted on.
Called by each role and by the spawner, at their beats and before a fork.
"""

import ctypes
import os
from pathlib import Path
from threading import Thread

_CLONE_FS = 0x200  # linux/sched.h
_CLONE_NEWNS = 0x20000

_libc = ctypes.CDLL(None, use_errno=True)


def keep_up(place: Path) -> bool:
    """Follow the root of our mount namespace if `place` is not to be seen from ours. True if we have another root now.

    Without CAP_SYS_ADMIN and CAP_SYS_CHROOT nothing is done: such a process was not started in an initramfs. In the
    moment between the moves and the new root there is nothing to follow yet: the next look finds it.
    """
    if place.exists():
        return False
    try:
        fd = _root_of_our_namespace()
    except OSError:
        return False
    try:
        here, there = os.stat("/"), os.fstat(fd)
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return False
        os.fchdir(fd)
        os.chroot(".")  # of all our threads: they share one root
        os.chdir("/")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _root_of_our_namespace() -> int:
    """A descriptor of it (O_PATH). Raises OSError: EPERM without the capabilities.

    setns(2) into the mount namespace that we are in sets root and working directory to what is mounted topmost at its
    root; /proc is not there to show it. It refuses (EINVAL) who shares them with others, as threads do: so a thread of
    its own gives up sharing first, and ends.
    """
    found: list[int] = []

    def look() -> None:
        if _libc.unshare(_CLONE_FS):
            return found.append(-ctypes.get_errno())
        own = os.pidfd_open(os.getpid())
        try:
            if _libc.setns(own, _CLONE_NEWNS):
                return found.append(-ctypes.get_errno())
        finally:
            os.close(own)
        found.append(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    thread = Thread(target=look, name="newroot")
    thread.start()
    thread.join()
    if not found or found[0] < 0:
        error = -found[0] if found else 0
        raise OSError(error, f"the root of our mount namespace: {os.strerror(error)}")
    return found[0]
