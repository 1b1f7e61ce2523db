"""`replug demo`: the main job, shown on a real kernel: a disk image served over USB, cables pulled, processes killed.

Outside (`show`): makes the image, boots a guest, renders the progress. Inside the guest (`inside`): both sides, real
devices, real faults; `trial` serves somebody's own image there. Called by tools.cli; the product uses nothing of it.
"""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Also what the reference is made from."""
    found = argparse.ArgumentParser(prog="replug demo", description="Serve a disk, pull the cable, kill everything.")
    found.add_argument(
        "--image", type=Path, metavar="F", help="serve this image in a guest, with a shell to use it there"
    )
    found.add_argument("--direct", action="store_true", help="use this machine's kernel instead of a guest")
    found.add_argument("--arch", choices=["amd64", "arm64"], help="of the guest; another one is emulated")
    found.add_argument(
        "--timeout", type=int, default=600, metavar="S", help="seconds until the guest is ended (default: 600)"
    )
    return found


def main(argv: list[str]) -> int:
    """Run the demo; 0 if every byte was right and every dd ended, 1 if not."""
    options = parser().parse_args(argv)
    if options.image is not None:
        from tools.demo.trial import try_image

        return try_image(options.image, options.arch, options.timeout)

    from tools.demo.show import show

    return show(options.direct, options.timeout, options.arch)
