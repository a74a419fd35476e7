"""A timeline as an SVG picture, for light and dark surroundings."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from kmodd.dataclass import dataclass
from kmodd.planning.timeline import Load, Timeline
from kmodd.text import count_of, duration, printable

MAX_ROWS = 150
"""Loads with a row of their own: the longest ones."""

_WIDTH, _LEFT, _RIGHT, _MARGIN = 1200, 290, 1010, 20
_TOP, _ROW, _LANE = 96, 18, 14
"""Pixels: above the first lane, of a row, of a lane."""
_CHARACTER = 6.7
"""Pixels of a character of the text, on average."""
_TICKS = 12
"""Ticks of the axis, at most."""

_LIGHT = {
    "back": "#ffffff", "text": "#1f2328", "faint": "#59636e", "grid": "#e3e7eb", "wait": "#b6bec8",
    "needed": "#8fbdf0", "init": "#1f6feb", "failed": "#cf222e", "awaited": "#c2560c",
}  # fmt: skip
_DARK = {
    "back": "#0d1117", "text": "#e6edf3", "faint": "#9198a1", "grid": "#242a32", "wait": "#545d68",
    "needed": "#2c5f9e", "init": "#58a6ff", "failed": "#f85149", "awaited": "#f0883e",
}  # fmt: skip


def draw(timeline: Timeline) -> str:
    """Return the picture as the text of an SVG file."""
    rows = rows_of(timeline)
    lanes_end = _TOP + max(timeline.lanes, 1) * _LANE
    rows_top = lanes_end + 26
    bottom = rows_top + len(rows) * _ROW
    notes = notes_of(timeline, rows)
    height = bottom + (46 if notes else 28)
    axis = _Axis(timeline.begin, max(timeline.end, timeline.begin + 1))
    svg = ElementTree.Element(
        "svg", xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_WIDTH} {height}", width=str(_WIDTH),
        height=str(height), role="img",
    )  # fmt: skip
    _add(svg, "title", text=title_of(timeline))
    _add(svg, "style", text=_style())
    _rectangle(svg, "back", 0, 0, _WIDTH, height)
    _head(svg, timeline)
    _grid(svg, axis, bottom, timeline.done)
    _add(svg, "text", "faint end", text="lanes", x=_LEFT - 12, y=_TOP + 11)
    for load in timeline.loads:
        _draw_in_lane(svg, load, axis)
    _path(svg, [(load, rows_top + number * _ROW) for number, load in enumerate(rows) if load.is_awaited], axis)
    for number, load in enumerate(rows):
        _draw_row(svg, load, rows_top + number * _ROW, axis)
    if notes:
        _add(svg, "text", "faint", text=_cut(notes, _WIDTH - 2 * _MARGIN), x=_MARGIN, y=bottom + 36)
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


@dataclass(frozen=True, slots=True)
class _Axis:
    """The time axis, in µs."""

    begin: int
    end: int

    def x(self, usec: int) -> float:
        """Return the place of a time, in pixels."""
        part = (usec - self.begin) / (self.end - self.begin)
        return round(_LEFT + part * (_RIGHT - _LEFT), 1)

    def ticks(self) -> list[int]:
        """Return the times of the ticks: a round distance, at most _TICKS of them."""
        span = self.end - self.begin
        steps = (digit * 10**power for power in range(20) for digit in (1, 2, 5))
        step = next(step for step in steps if span / step <= _TICKS)
        first = -(-self.begin // step) * step
        return list(range(first, self.end + 1, step))


def rows_of(timeline: Timeline) -> list[Load]:
    """Return the loads that have a row of their own, by their start: the longest ones."""
    wanted = sorted(timeline.loads, key=lambda load: load.start - load.end)[:MAX_ROWS]
    kept = set(map(id, wanted))
    return [load for load in timeline.loads if id(load) in kept]


def title_of(timeline: Timeline) -> str:
    """Return the heading of the picture."""
    return f"Kernel modules at boot{f' of {_plain(timeline.host)}' if timeline.host else ''}"


def summary_of(timeline: Timeline) -> str:
    """Return what the daemon said at its start and at the end of coldplug."""
    parts = [timeline.greeting.removeprefix("Listening, "), timeline.summary or count_of(len(timeline.loads), "load")]
    return " · ".join(filter(None, parts))


def _head(svg: ElementTree.Element, timeline: Timeline) -> None:
    """Draw title, summary and legend."""
    _add(svg, "text", "title", text=title_of(timeline), x=_MARGIN, y=28)
    _add(svg, "text", "faint", text=_cut(summary_of(timeline), _WIDTH - 2 * _MARGIN), x=_MARGIN, y=47)
    x = _MARGIN
    for kind, label in (
        ("wait", "waiting for a loader"), ("needed", "loading what it needs"), ("init", "loading it, init"),
        ("failed", "failed"), ("awaited", "the boot waited for it"),
    ):  # fmt: skip
        top, thickness = (59, 4) if kind == "wait" else (57, 8)
        _rectangle(svg, kind, x, top, 22, thickness)
        _add(svg, "text", "faint", text=label, x=x + 28, y=65)
        x += 28 + int(len(label) * _CHARACTER) + 18
    if timeline.done:
        _line(svg, "done", x + 4, 55, x + 4, 67)
        _add(svg, "text", "faint", text="end of coldplug", x=x + 14, y=65)


def _grid(svg: ElementTree.Element, axis: _Axis, bottom: int, done: int) -> None:
    """Draw the ticks with their times above and below, and the end of coldplug."""
    ticks = axis.ticks()
    for tick in ticks:
        x = axis.x(tick)
        _line(svg, "grid", x, _TOP - 6, x, bottom + 2)
        for y in (_TOP - 11, bottom + 15):
            _add(svg, "text", "faint middle", text=_time(tick, ticks), x=x, y=y)
    if axis.begin <= done <= axis.end:
        x = axis.x(done)
        _line(svg, "done", x, _TOP - 6, x, bottom + 2)


def _time(usec: int, ticks: list[int]) -> str:
    """Return a time of the axis: seconds with as many digits as two ticks need to differ."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else usec or 1
    digits = next((count for count in range(7) if step % 10 ** (6 - count) == 0), 6)
    return f"{usec / 1e6:.{digits}f}s"


def _draw_in_lane(svg: ElementTree.Element, load: Load, axis: _Axis) -> None:
    y = _TOP + load.lane * _LANE
    x, end = axis.x(load.start), axis.x(load.end)
    kind = "init" if load.result == "loaded" else "failed"
    bar = _rectangle(svg, f"{kind} slim{' path' * load.is_awaited}", x, y + 2, max(end - x, 1), _LANE - 4)
    _add(bar, "title", text=_details(load))


def _draw_row(svg: ElementTree.Element, load: Load, y: int, axis: _Axis) -> None:
    """Draw one load: what it is for at the left, its bars, and its module beside them."""
    row = ElementTree.SubElement(svg, "g")
    _add(row, "title", text=_details(load))
    _add(row, "text", "end", text=_cut(load.subject, _LEFT - _MARGIN - 12), x=_LEFT - 12, y=y + 13)
    begin, start, end = axis.x(load.begin), axis.x(load.start), axis.x(load.end)
    if start - begin >= 1:
        _rectangle(row, "wait", begin, y + 7, start - begin, 4)
    kind = "init" if load.result == "loaded" else "failed"
    needed = axis.x(min(load.start + load.others, load.end))
    init = axis.x(max(load.end - load.init, load.start))
    if load.others and needed - start >= 0.5:
        _rectangle(row, "needed", start, y + 5, needed - start, 8)
    if init > needed:
        _rectangle(row, "wait", needed, y + 8, init - needed, 2)
    init = min(init, end - 2)
    _rectangle(row, kind, init, y + 4, end - init, 10)
    failed = "" if load.result == "loaded" else f" {load.result}"
    label = f"{load.module}{failed} {duration(load.end - load.start)}"
    style = "halo strong" if load.is_awaited else "halo"
    _add(row, "text", style, text=_cut(label, _WIDTH - end - 10), x=end + 6, y=y + 13)


def _path(svg: ElementTree.Element, awaited: list[tuple[Load, int]], axis: _Axis) -> None:
    """Draw a band behind each row that the boot waited for, and the lines that join one to the next."""
    for _, y in awaited:
        _rectangle(svg, "band", 0, y, _WIDTH, _ROW)
        _rectangle(svg, "awaited", 0, y, 4, _ROW)
    for (load, y), (_, after) in pairwise(awaited):
        x = axis.x(load.end)
        _line(svg, "join", x, y + 9, x, after + 9)


def _details(load: Load) -> str:
    """Return the text that is shown where the pointer rests."""
    inits = ", ".join(f"{name} {duration(usec)}" for name, usec in load.inits)
    text = (
        f"{load.module} {load.result} for {load.subject} ({load.source})\n"
        f"came at {duration(load.begin)}, waited {duration(max(load.start - load.begin, 0))}, "
        f"took {duration(load.end - load.start)}\n{inits}"
    )
    if load.device:
        text += f"\n{load.device}"
    return "\n".join(map(_plain, text.split("\n")))


def notes_of(timeline: Timeline, rows: list[Load]) -> str:
    """Return what the bars do not show: a time without loads, those without a row, and those after coldplug.

    The result is empty if there is none of these.
    """
    parts = []
    if timeline.gap:
        first = next((load.module for load in timeline.loads if load.is_awaited), "the end of coldplug")
        parts.append(f"no load for {duration(timeline.gap)} before {first}")
    if omitted := len(timeline.loads) - len(rows):
        least = min(load.end - load.start for load in rows)
        each, have = ("", "has") if omitted == 1 else (" each", "have")
        parts.append(f"{count_of(omitted, 'load')} of at most {duration(least)}{each} {have} no row")
    if timeline.later:
        are = "is" if timeline.later == 1 else "are"
        parts.append(f"{count_of(timeline.later, 'load')} after coldplug {are} left out")
    return "; ".join(parts)


def _style() -> str:
    light, dark = _rules(_LIGHT), _rules(_DARK)
    return (
        "\ntext { font: 12px system-ui, sans-serif; }\n.title { font-size: 17px; font-weight: 600; }\n"
        ".strong { font-weight: 600; }\n.end { text-anchor: end; }\n.middle { text-anchor: middle; }\n"
        f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _rules(colours: dict[str, str]) -> str:
    text, faint, awaited = colours["text"], colours["faint"], colours["awaited"]
    lines = [
        f".{name} {{ fill: {colours[name]}; }}" for name in ("back", "wait", "needed", "init", "failed", "awaited")
    ]
    lines += [
        f"text {{ fill: {text}; }}",
        f"text.faint {{ fill: {faint}; }}",
        f".halo {{ paint-order: stroke; stroke: {colours['back']}; stroke-width: 3px; stroke-opacity: 0.8; }}",
        f".grid {{ stroke: {colours['grid']}; }}",
        f".done {{ stroke: {faint}; stroke-dasharray: 4 3; }}",
        f".band {{ fill: {awaited}; fill-opacity: 0.1; }}",
        f".join {{ stroke: {awaited}; stroke-width: 1.5; }}",
        f".slim {{ stroke: {colours['back']}; stroke-width: 0.5; }}",
        f".path {{ fill: {awaited}; }}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _rectangle(
    parent: ElementTree.Element, kind: str, x: float, y: float, width: float, height: float
) -> ElementTree.Element:
    return _add(parent, "rect", kind, x=x, y=y, width=round(width, 1), height=height)


def _line(parent: ElementTree.Element, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
    _add(parent, "line", kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _add(parent: ElementTree.Element, tag: str, kind: str = "", text: str = "", **places: float) -> ElementTree.Element:
    """Add an element; text is made plain by the caller where a name stands in it."""
    attributes = {"class": kind} if kind else {}
    element = ElementTree.SubElement(parent, tag, attributes | {name: f"{value:g}" for name, value in places.items()})
    element.text = text if tag in ("style", "title") else _plain(text)
    return element


def _plain(text: str) -> str:
    """Return a text that XML and a viewer can take: no control characters, no change of direction, no broken UTF-8."""
    return printable(text).encode("utf-8", "backslashreplace").decode()


def _cut(text: str, pixels: float) -> str:
    most = int(pixels / _CHARACTER)
    text = _plain(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
