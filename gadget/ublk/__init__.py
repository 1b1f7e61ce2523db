"""The ublk side of the gadget: `uring`, `abi`, `control` (/dev/ublk-control), `device` (/dev/ublkcN).

Thin typed wrappers over the kernel, used by the `queue` role, which is the only caller. Nothing here knows
the bus.
"""
