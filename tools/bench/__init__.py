"""`replug bench`: what the parts and the whole do on this machine, in one run, and the ratios between them."""

import argparse
import json
import os
import sys
from pathlib import Path

from common.errors import Exit, Refused


def main(options: argparse.Namespace) -> int:
    """Run it and show it. With `check`, a regression of a ratio that is kept there is exit status 1."""
    from tools.bench import core, hops, run, show

    if unknown := set(options.system) - set(run.NAMES):
        raise Refused(f"bench: {', '.join(sorted(unknown))}: no such system: choose from {', '.join(run.NAMES)}")
    if os.geteuid() != 0:
        raise Refused("bench: makes gadgets and block devices: run it as root", Exit.LACKING)
    kept = json.loads(Path(options.check).read_text())["ratios"] if options.check else {}
    wish = run.Wish(options.system or run.NAMES, not options.full, options.seconds, options.rounds, options.profile)
    done = run.run(wish, lambda text: print(f"replug: {text}", file=sys.stderr, flush=True))
    more = {"left_out": done.left_out, "seconds": options.seconds, "profile": hops.document(done.steps)}
    document = core.document(run.machine(), done.figures, more)
    table = core.Table(done.figures)
    if options.chart:
        Path(options.chart).write_text(show.chart(table))
    if options.save:
        Path(options.save).write_text(json.dumps(document, indent=1) + "\n")
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        show.print_tables(table, done.left_out, done.steps)
    regressions = core.compare(core.ratios(table), kept)
    for line in regressions:
        print(f"replug: bench: {line}", file=sys.stderr)
    return Exit.FAULT if regressions else Exit.DONE
