"""What can be learnt of the connection to a host without asking it.

By the controller's state in sysfs where the gadget is ours; else by an endpoint, as nobody has said which controller it
is. Called by gadget/usb/transport.py.
"""

from typing import Final

from gadget.usb import udc
from gadget.usb.functionfs import packet_bytes
from gadget.usb.mounted import MountedFfs
from gadget.usb.tree import Tree

_SPEED: Final = {64: "full-speed", 512: "high-speed", 1024: "super-speed"}  # or faster: packets tell no more


def is_still(tree: Tree, ep0: int) -> bool:
    """Is the gadget there, bound if it is ours, that this descriptor is of?"""
    return tree.has(ep0) if isinstance(tree, MountedFfs) else tree.bound_udc() == tree.udc


def speed(tree: Tree, bulk: int) -> str:
    """As the kernel names it; `UNKNOWN` without a connection."""
    if isinstance(tree, MountedFfs):
        return _SPEED.get(packet_bytes(bulk), "UNKNOWN")
    return udc.speed(tree.udc)


def configured(tree: Tree, bulk: int) -> bool:
    """Has a host chosen our configuration?"""
    if isinstance(tree, MountedFfs):
        return packet_bytes(bulk) > 0
    return udc.state(tree.udc) in ("configured", "suspended")
