"""A View as lines of a given width and height. Pure: lines are lists of (text, style), drawn by tools.top.screen.

Nothing is ever wider or longer than asked for. When room is short, sparklines go first, then the event log down to two
lines; then the lists say how much of them is not shown.
"""

from collections.abc import Sequence

from common.units import show_latency, show_size, show_time
from tools.top.core import ExportView, Mode, View

Line = list[tuple[str, str]]  # the style is rich's; colour supports the words, and never replaces them
MIN_WIDTH, MIN_HEIGHT = 40, 10
_BARS = " ▁▂▃▄▅▆▇█"
_STATE_STYLE = {
    **dict.fromkeys(("healthy", "online", "running", "live"), "green"),
    **dict.fromkeys(("degraded", "parked", "starting", "recovering"), "yellow"),
    **dict.fromkeys(("down", "absent", "failed", "stuck"), "bold red"),
}
_HELP = (
    "",
    " up, down   choose a process",
    " r          restart it: it ends what it does, then its successor starts",
    " d          drain it: the same, and a fault is told if it had to be killed",
    " k          kill it (SIGKILL), after a question; I/O waits meanwhile and goes on",
    " l          its log; l again reads it anew",
    " q          back, or leave: what is watched goes on running",
    "",
    " INFL: I/Os in flight. p50, p99: latency that half, and 99 of 100, stay below.",
    " The bars are bytes a second, the newest at the right; a dot: nobody could tell.",
)


def draw(view: View, width: int, height: int) -> list[Line]:
    """At most `height` lines of at most `width` cells; the last one is the line of keys."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return [_cut([(f"{MIN_WIDTH}x{MIN_HEIGHT} needed", "")], width)][:height]
    head = _head(view, width)
    room = height - len(head) - 1
    if view.mode is Mode.HELP:
        body: list[Line] = [[(text, "")] for text in _HELP]
    elif view.mode is Mode.LOG:
        title: Line = [(f" log of {view.selected}", "bold")]
        body = [title, *([(f" {text}", "")] for text in (view.log or ("(empty)",))[-(room - 1) :])]
    else:
        body = _body(view, width, room)
    body = body[:room] + [[]] * (room - len(body))
    return [_cut(line, width) for line in [*head, *body, _keys(view)]]


def _head(view: View, width: int) -> list[Line]:
    """What does not fit is left out, the least important first."""
    link = view.link
    line: Line = [(f" replug {view.title}", "bold"), ("  ● ", _style(view.state)), (view.state, _style(view.state))]
    line += [("  link ", ""), (str(link["state"]), _style(str(link["state"])))]
    line += [(" " + text, "") for text in (link.get("age"), link.get("peer"), link.get("speed")) if text]
    more = [f"  up {view.up}" if view.up else "", f"  session {view.session[2:6]}…" if view.session else ""]
    for text in more:
        if sum(len(piece) for piece, _ in line) + len(text) <= width:
            line.append((text, "dim"))
    why = view.notice or (str(link.get("reason") or "") if link["state"] != "online" else "")
    return [line, [(f" {why}", "yellow")]] if why else [line]


def _style(state: str) -> str:
    return _STATE_STYLE.get(state, "")


# -- the three lists -------------------------------------------------------------------------------------------------
def _body(view: View, width: int, room: int) -> list[Line]:
    rule: Line = [(" " + "─" * (width - 2), "dim")]
    fixed = 5 if view.exports else 3  # rules and headings
    spark = len(view.processes) + 2 * len(view.exports) + fixed + 2 <= room
    process_lines = min(len(view.processes), max(3, room - fixed - 2 - len(view.exports) * (2 if spark else 1)))
    export_lines = max(1, room - fixed - 2 - process_lines)
    lines: list[Line] = []
    if view.exports:
        heads: Line = [(_export_row(width, _EXPORT_HEADS), "bold")]
        lines = [rule, heads, *_exports(view.exports, width, spark, export_lines)]
    lines += [rule, [(_process_row(width, _PROCESS_HEADS), "bold")], *_processes(view, width, process_lines), rule]
    left = room - len(lines)
    return lines + [[(f" {text}", "")] for text in view.events[-left:]] if left > 0 else lines


_EXPORT_HEADS = ("EXPORT", "DEVICE", "SIZE", "STATE", "READ", "WRITE", "IOPS", "INFL", "p50", "p99")


def _export_row(width: int, cells: Sequence[str]) -> str:
    """Wide terminals give their room to the name; the columns are 78 cells at 80."""
    name, device, size, state, *numbers = cells
    wide = max(9, min(40, width - 71))
    text = f" {_fit(name, wide)} {_fit(device, 11)} {size:>6} {_fit(state, 10)}"
    return text + "".join(f" {number:>{n}}" for number, n in zip(numbers, (7, 7, 5, 4, 5, 5), strict=True))


def _exports(exports: Sequence[ExportView], width: int, spark: bool, room: int) -> list[Line]:
    lines: list[Line] = []
    for export in exports:
        row = export.row
        state = str(row.get("state", ""))
        latency = row.get("latency_ms") or {}
        cells = [str(row["name"]), str(row.get("device") or "-"), show_size(int(row["size_bytes"])), state]
        cells += [_rate(export.read_bytes_s), _rate(export.write_bytes_s), _count(export.iops)]
        cells += [_count(row.get("in_flight")), show_latency(latency.get("p50")), show_latency(latency.get("p99"))]
        lines.append([(_export_row(width, cells), _style(state) if state != "live" else "")])
        if spark:
            lines.append(_under(export, width))
    if len(lines) > room:
        step = 2 if spark else 1
        kept = max(0, room - 1) // step * step
        lines = [*lines[:kept], [(f"  … {len(exports) - kept // step} more: 'replug status' shows all", "dim")]]
    return lines


def _under(export: ExportView, width: int) -> Line:
    """Below an export: what it waits for, or how its rate went."""
    reason = str(export.row.get("reason") or "")
    waits = int(export.row.get("oldest_ms") or 0)
    if reason:
        age = show_latency(waits) if waits < 10_000 else show_time(waits / 1000)
        oldest = f", I/O waits for {age}" if waits else ""
        room = width - 3 - len(oldest)  # for how long is never what is cut
        return [("   " + (reason if len(reason) <= room else reason[: room - 1] + "…") + oldest, "yellow")]
    return [("   " + sparkline(export.history, width - 5), "cyan")]


def sparkline(history: Sequence[float | None], width: int) -> str:
    """The newest `width` values, scaled to the largest of them. A dot where nothing is known, a blank for 0."""
    shown = history[-width:]
    top = max((value for value in shown if value), default=0.0)
    return "".join("·" if v is None else _BARS[0 if not v else max(1, round(v / top * 8))] for v in shown)


_PROCESS_HEADS = ("PROCESS", "PID", "STATE", "FOR", "GEN", "RST", "CPU", "MEM", "LAST EXIT, PAUSE")


def _process_row(width: int, cells: Sequence[str], mark: str = " ") -> str:
    role, pid, state, up, generation, restarts, cpu, mem, last = cells
    wide = max(15, min(46, width - 72))
    left = f"{mark}{_fit(role, wide)} {pid:>7} {_fit(state, 8)} {up:>5} {generation:>5}"
    return f"{left} {restarts:>3} {cpu:>4} {mem:>6}  {last}"


def _processes(view: View, width: int, room: int) -> list[Line]:
    """A window of the list that has the selected one in it."""
    rows = view.processes
    at = next((n for n, row in enumerate(rows) if row["role"] == view.selected), 0)
    first = max(0, min(at - room // 2, len(rows) - room))
    lines: list[Line] = []
    for row in rows[first : first + room]:
        chosen, state = row["role"] == view.selected, str(row["state"])
        pause = f", {row['pause_ms']} ms" if row["pause_ms"] is not None else ""
        last = str(row.get("reason") or "") if state not in ("running", "gone") else ""
        if state == "running" and row.get("answers") is False:
            last = "does not answer"
        cells = [row["role"], str(row["pid"] or "-"), state, row["up"], _generation(int(row["generation"]))]
        cells += [str(row["restarts"]), f"{row['cpu_percent']:.0f}%", show_size(row["rss_bytes"])]
        cells.append((last or row["last_exit"]).replace("killed by ", "") + (pause if row["last_exit"] else ""))
        style = "reverse" if chosen else _style(state) if state != "running" else ""
        lines.append([(_process_row(width, cells, "▶" if chosen else " "), style)])
    return lines


def _generation(nanoseconds: int) -> str:
    """Its last digits, in tenths of a second: enough to see that it is another one."""
    return f"{nanoseconds // 100_000_000 % 100_000}" if nanoseconds else "-"


def _keys(view: View) -> Line:
    if view.mode is Mode.CONFIRM:
        return [(f" kill {view.selected} with SIGKILL?  y yes  n no", "bold yellow")]
    if view.mode is Mode.MAIN:
        return [(" ↑↓ choose  r restart  d drain  k kill  l log  ? help  q quit", "dim")]
    return [(" q back" + ("  l read it again" if view.mode is Mode.LOG else ""), "dim")]


# -- cells -----------------------------------------------------------------------------------------------------------
def _rate(bytes_s: float | None) -> str:
    return "-" if bytes_s is None else f"{show_size(int(bytes_s))}"


def _count(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:.0f}" if number < 99_999.5 else f"{number / 1000:.0f}k"


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _cut(line: Line, width: int) -> Line:
    """No control characters (a log line may hold any), and no longer than the screen is wide; a cut is marked."""
    left, cut = width, list[tuple[str, str]]()
    for text, style in line:
        text = "".join(c if c.isprintable() else " " for c in text)
        if len(text) > left:
            return [*cut, (text[: left - 1] + "…", style)] if left else cut
        left -= len(text)
        cut.append((text, style))
    return cut
