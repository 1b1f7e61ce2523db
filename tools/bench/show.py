"""Figures for people: tables on the terminal, and a chart as SVG."""

from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape

from rich.console import Console
from rich.table import Table as Rich

from tools.bench.core import Figure, Step, Table, ratios

_COLOURS = {"bus": "#8c8c8c", "link": "#4878a8", "block": "#6aa84f", "whole": "#cc5533", "mass_storage": "#9a7fb8"}
_ROW, _LEFT, _WIDTH = 18, 330, 960


def print_tables(table: Table, left_out: Mapping[str, str], steps: Sequence[Step]) -> None:
    """Throughput and latency, costs by role, ratios."""
    console = Console(width=None if Console().is_terminal else 120)
    console.print(_speeds(table))
    console.print(_costs(table))
    console.print(_ratios(table))
    if steps:
        console.print(_profile(steps))
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}")


def _speeds(table: Table) -> Rich:
    rich = Rich(title="speed", title_justify="left")
    for name in ("system", "load", "MB/s", "per second", "mean ms", "p50", "p95", "p99"):
        rich.add_column(name, justify="left" if name in ("system", "load") else "right")
    for f in table.figures():
        tail = [_ms(f.latency_us.get(name)) for name in ("mean", "p50", "p95", "p99")]
        rich.add_row(f.system, f.load, f"{f.bytes_s / 1e6:.1f}", f"{f.iops:.0f}", *tail)
    return rich


def _profile(steps: Sequence[Step]) -> Rich:
    rich = Rich(title="a lone 4K read, step by step (medians)", title_justify="left")
    rich.add_column("from one point to the next")
    rich.add_column("us", justify="right")
    for step in steps:
        rich.add_row(step.name, f"{step.median_us:.0f}")
    rich.add_row("all", f"{sum(step.median_us for step in steps):.0f}")
    return rich


def _ms(us: float | None) -> str:
    return "" if us is None else f"{us / 1000:.2f}"


def _costs(table: Table) -> Rich:
    rich = Rich(title="costs by role", title_justify="left")
    for name in ("system", "load", "role", "CPU s/GiB", "CPU s/1000", "switches/1000"):
        rich.add_column(name, justify="left" if name in ("system", "load", "role") else "right")
    for f in table.figures():
        for role in f.costs:
            if f.cpu_per_1000(role) >= 0.001:
                per_gib = f"{f.cpu_per_gib(role):.1f}" if f.size_bytes else ""
                spent = f"{f.cpu_per_1000(role):.3f}", f"{f.switches_per_1000(role):.0f}"
                rich.add_row(f.system, f.load, role, per_gib, *spent)
    return rich


def _ratios(table: Table) -> Rich:
    rich = Rich(title="ratios", title_justify="left")
    for name in ("ratio", "value", "goal", "", "meaning"):
        rich.add_column(name, justify="right" if name in ("value", "goal") else "left")
    for r in ratios(table):
        goal = f"{'>=' if r.larger_is_better else '<='} {r.goal:g}"
        rich.add_row(r.name, f"{r.value:.2f}", goal, "reached" if r.reached else "not reached", r.meaning)
    return rich


def chart(table: Table) -> str:
    """Two groups of bars: MB/s of large transfers, and operations each second of small ones."""
    large = [f for f in table.figures() if f.size_bytes and f.size_bytes // max(f.operations, 1) > 4096]
    small = [f for f in table.figures() if f not in large and f.operations]
    rows = [*_group("MB/s", large, lambda f: f.bytes_s / 1e6), *_group("per second", small, lambda f: f.iops)]
    height = _ROW * (len(rows) + 1)
    body = "\n".join(row.replace("@Y", str(_ROW * (n + 1))) for n, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _group(title: str, figures: list[Figure], value: Callable[[Figure], float]) -> list[str]:
    if not figures:
        return []
    most = max(value(f) for f in figures) or 1.0
    rows = [f'<text x="8" y="@Y" font-weight="bold">{title}</text>']
    for f in figures:
        width = (_WIDTH - _LEFT - 90) * value(f) / most
        label = escape(f"{f.system}: {f.load}")
        rows.append(
            f'<text x="8" y="@Y">{label}</text><rect x="{_LEFT}" y="@Y" width="{width:.1f}" height="12" '
            f'transform="translate(0,-10)" fill="{_COLOURS.get(f.system, "#444444")}"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="@Y">{value(f):.4g}</text>'
        )
    return [*rows, ""]
