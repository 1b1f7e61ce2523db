"""What a screen showed, over a time, as one SVG file that moves: for documents and for reports of faults. Pure.

Every row is stored once for each text it had, with the times at which it is seen (SMIL, which browsers play in an <img>
too); a viewer that does not move shows the poster, the screen at `poster_s`. No fonts and no scripts come with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tools.top.layout import Line

FRAMES = 1200  # kept, the newest: two minutes at ten a second
_CELL, _ROW, _MARGIN, _SIZE = 8.4, 17.0, 12.0, 14  # pixels; a cell is 0.6 of the font's size
_COLOURS = {"green": "#3fb950", "yellow": "#d29922", "red": "#f85149", "cyan": "#39c5cf", "dim": "#8b949e"}
_INK, _PAPER = "#e6edf3", "#0d1117"
_STILL_S = 2.0  # the last frame stays for so long before it begins again


@dataclass(frozen=True)
class Frame:
    """A screen as it was drawn at a time (seconds from any start)."""

    at_s: float
    lines: tuple[tuple[tuple[str, str], ...], ...]

    @staticmethod
    def of(at_s: float, lines: Sequence[Line]) -> "Frame":
        return Frame(at_s, tuple(tuple(line) for line in lines))


class Record:
    """Frames as they come; one that shows what the last one showed is none."""

    def __init__(self) -> None:
        self._frames: list[Frame] = []

    def add(self, at_s: float, lines: Sequence[Line]) -> None:
        frame = Frame.of(at_s, lines)
        if not self._frames or self._frames[-1].lines != frame.lines:
            self._frames = [*self._frames[-(FRAMES - 1) :], frame]

    def svg(self, width: int, height: int, title: str) -> str:
        return svg(self._frames, width, height, title)


def svg(frames: Sequence[Frame], width: int, height: int, title: str, poster_s: float | None = None) -> str:
    """`width` x `height` cells. The poster is the last frame unless a time is given."""
    start = frames[0].at_s if frames else 0.0
    length_s = (frames[-1].at_s - start if frames else 0.0) + _STILL_S
    poster = length_s - _STILL_S if poster_s is None else poster_s - start
    wide, tall = width * _CELL + 2 * _MARGIN, height * _ROW + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.1f} {tall:.1f}" width="{wide:.0f}" '
        f'height="{tall:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{_PAPER}"/>',
        f'<g font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="{_SIZE}" '
        f'fill="{_INK}" xml:space="preserve">',
    ]
    for number in range(height):
        for line, spans in _spans(frames, number, start, length_s).items():
            if any(text.strip() for text, _ in line):
                parts += _row(line, number, spans, length_s, poster)
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


_Shown = tuple[tuple[str, str], ...]
_Spans = list[tuple[float, float]]


def _spans(frames: Sequence[Frame], number: int, start: float, length_s: float) -> dict[_Shown, _Spans]:
    """What row `number` held, and from when until when."""
    found: dict[_Shown, _Spans] = {}
    for index, frame in enumerate(frames):
        line = frame.lines[number] if number < len(frame.lines) else ()
        end = frames[index + 1].at_s - start if index + 1 < len(frames) else length_s
        spans = found.setdefault(line, [])
        if spans and spans[-1][1] == frame.at_s - start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((frame.at_s - start, end))
    return found


def _row(line: _Shown, number: int, spans: _Spans, length_s: float, poster: float) -> list[str]:
    """One text of one row: its parts in their cells, and when it is seen."""
    shown = any(begin <= poster < end or end == length_s <= poster for begin, end in spans)
    always = spans == [(0.0, length_s)]
    out = [f'<g visibility="{"visible" if shown else "hidden"}">']
    if not always:
        out.append(_times(spans, length_s))
    y, at = _MARGIN + (number + 0.8) * _ROW, 0
    for text, style in line:
        if text.strip() or "reverse" in style:
            out += _part(text, style, at, number, y)
        at += len(text)
    return [*out, "</g>"]


def _part(text: str, style: str, at: int, number: int, y: float) -> list[str]:
    x, wide = _MARGIN + at * _CELL, len(text) * _CELL
    words = style.split()
    colour = next((_COLOURS[word] for word in words if word in _COLOURS), "")
    more = ' font-weight="bold"' if "bold" in words else ""
    out = []
    if "reverse" in words:
        top = _MARGIN + number * _ROW
        out.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{_ROW}" fill="{_INK}"/>')
        colour = _PAPER
    fill = f' fill="{colour}"' if colour else ""
    # The width is said, so that columns stand whatever font is there.
    out.append(
        f'<text x="{x:.1f}" y="{y:.1f}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs"{fill}{more} '
        f'style="white-space:pre">{escape(text)}</text>'
    )
    return out


def _times(spans: _Spans, length_s: float) -> str:
    """Seen within its spans, again and again."""
    values, keys = ([], []) if spans[0][0] == 0.0 else (["hidden"], ["0"])
    for begin, end in spans:
        values.append("visible")
        keys.append(f"{begin / length_s:.5f}" if begin else "0")
        if end < length_s:
            values.append("hidden")
            keys.append(f"{end / length_s:.5f}")
    return (
        f'<animate attributeName="visibility" calcMode="discrete" dur="{length_s:.2f}s" repeatCount="indefinite" '
        f'values="{";".join(values)}" keyTimes="{";".join(keys)}"/>'
    )
