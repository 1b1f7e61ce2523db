"""Which gadget tree an instance has, its own or not, and what it shows to hosts: from the role's arguments."""

from pathlib import Path
from typing import Any

from bus.runtime import Runtime
from common.wire import Identity
from gadget.usb.configfs import GadgetTree
from gadget.usb.mounted import MountedFfs

Tree = GadgetTree | MountedFfs
VENDOR_ID, PRODUCT_ID = 0x1D6B, 0x0104  # Linux Foundation, multifunction composite gadget


def tree_of(runtime: Runtime, args: dict[str, Any], controller: str = "") -> Tree:
    """The gadget tree of an instance, from the role's arguments. To remove it needs no controller: it may be gone."""
    identity = Identity[str(args.get("identity") or Identity.SMOO.name).upper()]
    tree = GadgetTree(
        name=f"replug-{runtime.instance}",
        udc=controller,
        vendor_id=int(args.get("vendor_id") or VENDOR_ID),
        product_id=int(args.get("product_id") or PRODUCT_ID),
        serial=str(args.get("serial") or "replug"),
        product="replug",
        mount_point=runtime.root / "ffs",
        identity=identity,
    )
    if directory := args.get("ffs_dir"):
        return MountedFfs(Path(str(directory)), left=tree, identity=identity)
    return tree
