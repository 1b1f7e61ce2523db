"""A command line becomes options: by the grammar, with what a configuration file says as defaults."""

import argparse

from common.errors import Refused
from tools.cli.grammar import DELEGATED, grammar, leaf


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises SystemExit(2) with one line on wrong use."""
    if argv and argv[0] in DELEGATED:
        return argparse.Namespace(command=argv[0], arguments=argv[1:], debug=False)
    options = grammar().parse_args(argv)
    if getattr(options, "config", None) is not None:
        options = _configured(argv, options)
    for each in getattr(options, "several", [options]):
        if getattr(each, "source", None) == []:
            cure = "give a disk image or block device, or `source` in --config"
            leaf(grammar(), "host", "serve").error(f"no SOURCE: {cure}")
    return options


def _configured(argv: list[str], options: argparse.Namespace) -> argparse.Namespace:
    """With what the file says as defaults. `several`: one for each table [host.NAME], if none of them was named."""
    from tools.config.file import defaults, instances  # here, as most commands need no parser of TOML

    side, names = options.command, instances(options.config, options.command)
    if not names or options.instance != "default":
        wanted = [options.instance]
    elif side == "host":
        wanted = names
    else:
        raise Refused(f"{options.config}: several gadget sides, {', '.join(names)}: say which with --instance")
    several = []
    for name in wanted:
        parser = grammar()
        if options.action != "down":
            leaf(parser, options.command, options.action).set_defaults(**defaults(options.config, side, name))
        several.append(parser.parse_args(argv))  # again: what the command line says wins over the file
        several[-1].instance = name
    several[0].several = several
    return several[0]
