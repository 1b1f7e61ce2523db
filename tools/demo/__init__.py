"""`replug demo`: the main job, shown on a real kernel: a disk image served over USB, cables pulled, processes killed.

Outside (`show`): makes the image, boots a guest, renders the progress. Inside the guest (`inside`): both sides, real
devices, real faults. Called by tools.cli; nothing here is used by the product.
"""

import argparse


def main(argv: list[str]) -> int:
    """Run the demo; 0 if every byte was right and every dd ended, 1 if not."""
    parser = argparse.ArgumentParser(prog="replug demo", description="Serve a disk, pull the cable, kill everything.")
    parser.add_argument("--direct", action="store_true", help="use this machine's kernel instead of a guest")
    parser.add_argument(
        "--arch",
        choices=["amd64", "arm64"],
        help="of the guest; another one is emulated",
    )
    parser.add_argument("--timeout", type=int, default=600, help="seconds after which the guest is ended")
    options = parser.parse_args(argv)

    from tools.demo.show import show

    return show(options.direct, options.timeout, options.arch)
