"""Line charts with logarithmic axes, as SVG; powers are straight lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 44, 92
COLOURS = ("#1f6feb", "#c2410c", "#15803d")


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve; all coordinates are greater than 0."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart with one pair of axes."""

    title: str
    across: str
    up: str
    lines: Sequence[Line]


def picture(panels: Sequence[Panel]) -> str:
    """Return an SVG file with the panels side by side."""
    inner = "".join(
        f'<g transform="translate({number * WIDTH},0)">{_panel(panel)}</g>\n' for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(panels)}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#333">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{inner}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    xs, ys = ([point[axis] for line in panel.lines for point in line.points] for axis in (0, 1))
    low_x, high_x = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    low_y, high_y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high_y = max(high_y, low_y + 1)

    def across(value: float) -> float:
        return LEFT + (math.log10(value) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(value) - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [_text(WIDTH / 2, 22, panel.title, 'text-anchor="middle" font-size="14" font-weight="bold"')]
    for power in range(low_y, high_y + 1):
        at = up(10.0**power)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, at + 4, f"{10.0**power:g} {panel.up}", 'text-anchor="end"'))
    for value in sorted(set(xs)):
        at = across(value)
        parts.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 16, f"{value:,.0f}", 'text-anchor="middle"'))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 32, panel.across, 'text-anchor="middle"'))
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        places = [(across(x), up(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (many, cost) in zip(places, line.points, strict=True):
            others = [up(one) for other in panel.lines if other is not line for at, one in other.points if at == many]
            is_below = others and y > max(others) and y + 17 < HEIGHT - BOTTOM
            away = 17 if is_below else -8  # so that the figures of two lines do not overlap
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
            parts.append(_text(x, y + away, f"{cost:.3g}", f'text-anchor="middle" fill="{colour}"'))
        below = HEIGHT - 28 + 16 * number
        parts.append(f'<path d="M{LEFT} {below - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(LEFT + 32, below, line.name, ""))
    return "".join(parts)


def _text(x: float, y: float, text: str, how: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'
