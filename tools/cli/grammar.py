"""The grammar of the command line: every command, option and what they take. What they do is tools.cli.commands,
what each value may be tools.cli.values.

Completion, configuration files, the manual page and the documents are made from it.
"""

import argparse
from typing import NoReturn

from tools.cli import values as of
from tools.version import VERSION

_ROLE_COMMANDS = {
    "restart": "drain a role and start it anew",
    "drain": "as restart, and a fault (1) if it had to be killed",
    "kill": "SIGKILL a role; its successor starts",
}
_LEVELS = ("trace", "debug", "info", "warning", "error")
IDENTITIES = ("smoo", "fastboot")  # common.wire.Identity
DELEGATED = ("vm", "demo")  # they read their own arguments


class _Parser(argparse.ArgumentParser):
    """Errors in our form: one line, and how to get help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"replug: {message}: see '{self.prog} --help'\n")


def grammar() -> argparse.ArgumentParser:
    """The whole of it; also what completion and configuration are made from."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument("--instance", default="default", metavar="I", help="which of several sides (default: default)")
    parser = _Parser(prog="replug", description="An inverted USB disk: every process of it may be killed in use.")
    parser.add_argument("--version", action="version", version=f"replug {VERSION}", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    gadget = commands.add_parser("gadget", help="the side with the USB device controller")
    actions = gadget.add_subparsers(dest="action", required=True, metavar="up|down")
    _gadget_up(actions.add_parser("up", parents=[common], help="bring it up, or take over what is there"))
    down = actions.add_parser("down", parents=[common], help="take it down and leave nothing behind")
    down.add_argument("--force", action="store_true", help="even if a device is in use: its pending I/O fails (EIO)")
    _if_running(down)

    host = commands.add_parser("host", help="the side that holds the bytes")
    actions = host.add_subparsers(dest="action", required=True, metavar="serve|add|remove|eject|down")
    _host_serve(actions.add_parser("serve", parents=[common], help="serve until Ctrl-C"))
    down = actions.add_parser("down", parents=[common], help="end a `host serve`")
    down.add_argument("--config", metavar="F", help="end every instance that this file has a table for")
    _if_running(down)
    add = actions.add_parser("add", parents=[common], help="serve more, beside what is served")
    _sources(add, "+")
    remove = actions.add_parser("remove", parents=[common], help="flush an export and serve it no more")
    remove.add_argument("name", nargs="+", metavar="NAME", help="of an export")
    eject = actions.add_parser("eject", parents=[common], help="flush, and say when it is safe to unplug or power off")
    eject.add_argument("name", nargs="*", metavar="NAME", help="of an export (default: all)")

    _export(commands.add_parser("export", help="ways out of parking, on the gadget side"), common)
    status = commands.add_parser("status", parents=[common], help="one look at a side")
    _side(status)
    status.add_argument("--json", action="store_true", help="for programs (version 1, see docs/status-json.md)")
    status.add_argument("--schema", action="store_true", help="print the JSON schema of --json, and look at nothing")
    status.add_argument("--watch", action="store_true", help="a line for each interval and each change, until Ctrl-C")
    status.add_argument("--interval", type=of.time, default=1.0, metavar="T", help="of --watch (default: 1s)")
    top = commands.add_parser("top", parents=[common], help="a living look at a side, with keys to act on it")
    _side(top)
    top.add_argument("--interval", type=of.time, default=1.0, metavar="T", help="between two looks (default: 1s)")
    top.add_argument("--record", metavar="FILE", help="at the end, write what was shown as a moving picture (SVG)")
    top.add_argument(
        "--for", dest="for_s", type=of.time, metavar="T", help="end by itself; with --record no terminal is needed"
    )
    for name, text in _ROLE_COMMANDS.items():
        command = commands.add_parser(name, parents=[common], help=text)
        _side(command)
        _role(command)
    text = "have this installation take over a side that runs, process by process, while its disks are in use"
    _side(commands.add_parser("upgrade", parents=[common], help=text))
    _log(commands.add_parser("log", parents=[common], help="a role's log, or its level"))
    _trace(commands.add_parser("trace", parents=[common], help="each step of each I/O, under one id on both sides"))
    metrics = commands.add_parser("metrics", parents=[common], help="counts and states, as Prometheus text")
    _side(metrics)
    doctor = commands.add_parser("doctor", parents=[common], help="what this machine can do, and what mends a lack")
    doctor.add_argument("--side", choices=("gadget", "host"), help="only what this side needs")
    doctor.add_argument("--json", action="store_true", help="for programs (version 1)")
    _bench(commands.add_parser("bench", parents=[common], help="measure the parts, the whole, and their ratios"))
    _capture(commands.add_parser("capture", parents=[common], help="record what passes on the USB bus, for Wireshark"))
    config = commands.add_parser("config", help="configuration files")
    check = config.add_subparsers(dest="action", required=True, metavar="check").add_parser(
        "check", parents=[common], help="look at a file, and name file, line and key of each fault"
    )
    check.add_argument("file", metavar="FILE", nargs="+", help="of options: TOML, as --config takes it")
    completion = commands.add_parser("completion", parents=[common], help="a bash script, for eval")
    asked = completion.add_mutually_exclusive_group()
    asked.add_argument("--roles", action="store_true", help="names of the roles here, for that script")
    asked.add_argument("--exports", choices=("gadget", "host"), help="names of the exports of a side, for that script")
    for name, text in (("vm", "run something in the guest"), ("demo", "the main job, shown with faults")):
        commands.add_parser(name, help=text)  # for the help only: parse() has seen them before
    return parser


def leaf(parser: argparse.ArgumentParser, *path: str) -> argparse.ArgumentParser:
    """The parser of a command by its words."""
    for word in path:
        parser = subcommands(parser)[word]
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(found, {}) or {})


def _gadget_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="TOML: the table [gadget] has these options as keys")
    parser.add_argument("--udc", metavar="N", help="USB device controller, a name in /sys/class/udc")
    parser.add_argument(
        "--serial",
        type=of.serial,
        metavar="S",
        help="USB serial number, to choose it by (default: from machine-id)",
    )
    parser.add_argument("--vid", type=of.usb_id, metavar="ID", help="USB vendor id (default: 0x1d6b)")
    parser.add_argument("--pid", type=of.usb_id, metavar="ID", help="USB product id (default: 0x0104)")
    parser.add_argument("--identity", choices=IDENTITIES, help="what its interface poses as (default: smoo)")
    text = "a FunctionFS that somebody else has mounted there, in a gadget that somebody else makes and binds"
    parser.add_argument("--ffs-dir", metavar="DIR", help=text)
    parser.add_argument("--queue-depth", type=of.queue_depth, metavar="N", help="tags of each ublk queue")
    parser.add_argument("--max-io", type=of.max_io, metavar="B", help="largest single I/O, 4K..128K (default: 128K)")
    _metrics_port(parser)
    _adopt(parser)


def _host_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="F", help="TOML: [host] has these options as keys; [host.NAME] is one of several"
    )
    _sources(parser, "*")
    forms = "only this gadget: SERIAL, serial:SERIAL, id:VID:PID, or port:1-2.3 as in sysfs"
    parser.add_argument("--gadget", type=of.gadget, metavar="GADGET", help=forms)
    parser.add_argument("--background", action="store_true", help="return when all is ready, and go on serving")
    _metrics_port(parser)
    _adopt(parser)


def _sources(parser: argparse.ArgumentParser, number: str) -> None:
    forms = (
        "a path, file:PATH?ro, http(s)://..., fsspec:s3://..., random:SEED?size=64M, overlay:MAP?over=SOURCE; "
        "NAME=SOURCE names it"
    )
    parser.add_argument("source", nargs=number, type=of.source, metavar="SOURCE", help=forms)
    parser.add_argument(
        "--block-size",
        type=of.block_size,
        metavar="B",
        help="512..4096 (default: what its content was made for, else 4096 where the size allows)",
    )
    parser.add_argument("--read-only", action="store_true", help="writes are refused")


def _adopt(parser: argparse.ArgumentParser) -> None:
    text = "if it runs already, that is success; a supervision that is silent is replaced (for service managers)"
    parser.add_argument("--adopt", action="store_true", help=text)


def _if_running(parser: argparse.ArgumentParser) -> None:
    text = "leave what a dead side left for the next start (for service managers)"
    parser.add_argument("--if-running", action="store_true", help=text)


def _metrics_port(parser: argparse.ArgumentParser) -> None:
    text = "Prometheus metrics on this loopback port too, as 127.0.0.1:9781 (`replug metrics` needs none)"
    parser.add_argument("--metrics", type=of.loopback, metavar="HOST:PORT", help=text)


def _log(parser: argparse.ArgumentParser) -> None:
    _side(parser)
    _role(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what is written, until Ctrl-C")
    parser.add_argument("--level", choices=_LEVELS, help="set its level, also for successors, and print nothing")
    _format(parser)


def _trace(parser: argparse.ArgumentParser) -> None:
    _side(parser)
    parser.add_argument("role", metavar="ROLE", nargs="?", help="only this one (default: all that handle I/O)")
    parser.add_argument("--io", default="", metavar="ID", help="only I/Os whose id begins so: an export, or one I/O")
    parser.add_argument("--for", dest="for_s", type=of.time, metavar="T", help="end after this time (default: Ctrl-C)")
    _format(parser)


def _role(parser: argparse.ArgumentParser) -> None:
    text = (
        "a process of the side, as `replug status` names it: usb, session, queue.NAME, source.NAME, watchdog, spawner"
    )
    parser.add_argument("role", metavar="ROLE", help=text)


def _format(parser: argparse.ArgumentParser) -> None:
    text = "default: human on a terminal, else JSON lines"
    parser.add_argument("--format", choices=("human", "json"), help=text)


def _export(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="fail|limit|resume")
    texts = {
        "fail": "end the device of a parked export now: its I/O fails (EIO)",
        "limit": "have it fail by itself when it was parked for a time",
        "resume": "take what the host has, or make a failed export a new device",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, parents=[common], help=text)
        action.add_argument("export", metavar="NAME", help="its name, id or device, as `replug status` shows them")
        if name == "limit":
            action.add_argument("limit", metavar="DURATION", help="as 30s or 5min; `none` takes a limit away")


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "system", nargs="*", metavar="SYSTEM", help="bus, link, block, whole, mass_storage, exports (all)"
    )
    parser.add_argument("--full", action="store_true", help="every load, not only those that the ratios are made of")
    parser.add_argument("--seconds", type=of.time, default=3.0, metavar="T", help="of each load (default: 3s)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="all of it N times, the fastest counts")
    parser.add_argument("--json", action="store_true", help="for programs (version 1)")
    parser.add_argument("--save", metavar="F", help="write what --json prints there, too")
    parser.add_argument("--chart", metavar="F", help="write a chart there, as SVG")
    parser.add_argument("--check", metavar="F", help="a document of --json: a ratio 15 % worse than there is a fault")
    parser.add_argument("--profile", action="store_true", help="where the time of a lone read goes, step by step")


def _capture(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="pcap, written anew; - is standard output")
    parser.add_argument("--bus", type=of.number, metavar="N", help="which bus, 0: all (default: those with a gadget)")
    parser.add_argument("--device", type=of.number, metavar="N", help="only this address on the bus")
    parser.add_argument("--max-size", type=of.size, metavar="B", help="end when the file is as large (default: 256M)")
    parser.add_argument("--for", dest="for_s", type=of.time, metavar="T", help="end after this time (default: Ctrl-C)")


def _side(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", choices=("gadget", "host"), help="needed only where both run")
