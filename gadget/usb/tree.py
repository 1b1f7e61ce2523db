"""Which gadget tree an instance has: its names, and what it shows to hosts, from the role's arguments."""

from typing import Any

from bus.runtime import Runtime
from common.wire import Identity
from gadget.usb.configfs import GadgetTree

VENDOR_ID, PRODUCT_ID = 0x1D6B, 0x0104  # Linux Foundation, multifunction composite gadget


def tree_of(runtime: Runtime, args: dict[str, Any], controller: str = "") -> GadgetTree:
    """The gadget tree of an instance, from the role's arguments. To remove it needs no controller: it may be gone."""
    return GadgetTree(
        name=f"replug-{runtime.instance}",
        udc=controller,
        vendor_id=int(args.get("vendor_id") or VENDOR_ID),
        product_id=int(args.get("product_id") or PRODUCT_ID),
        serial=str(args.get("serial") or "replug"),
        product="replug",
        mount_point=runtime.root / "ffs",
        identity=Identity[str(args.get("identity") or Identity.SMOO.name).upper()],
    )
