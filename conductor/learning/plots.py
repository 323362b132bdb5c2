"""Plots as inline SVG: lines with bands on a linear or logarithmic axis, and stacked bars.

Enters: series of numbers and names. Leaves: SVG as text, which loads nothing and needs no script. Knows no judgement.
Colours are told apart by dashes as well, and every plot carries its title and description for those who cannot see it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 940, 460, 70, 235, 20, 55
COLOURS = ("#2f7be5", "#e0661b", "#2a9d4a", "#b04ac0", "#8a8a8a", "#b58900", "#0098a6", "#d13b6b", "#7a5c3e", "#5b6bd6")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "", "5 2", "1 2", "8 2 2 2 2 2", "4 4", "10 5")
TICKS = (1.0, 2.0, 5.0)
NAME_CHARACTERS, CHARACTER, BETWEEN_NAMES = 30, 6.9, 14.0
SMALLEST = 6.0
"""Pixels: a curve that goes no farther is marked by a square."""
STEPS = 60
"""Points along a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """The band; empty where there is none."""
    thick: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, its ends, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """0 to 1 along the axis; a value that is off its ends, or not positive on a logarithmic one, is at an end."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round values within the ends."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = TICKS if last - first <= 3 else (1.0,)
            held = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            rough = (self.high - self.low) / 6
            size = 10.0 ** math.floor(math.log10(rough))
            step = next(size * one for one in (*TICKS, 10.0) if size * one >= rough)
            held = [step * index for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in held if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]


def axis(label: str, values: Sequence[float], *, logarithmic: bool = False) -> Axis:
    """An axis that holds these values; what is not positive stands at the low end of a logarithmic one."""
    if logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive) / 1.15, max(positive) * 1.15
        return Axis(label, low, high, True)
    low, high = min(values), max(values)
    space = 0.05 * (high - low) or 0.05
    return Axis(label, low - space, high + space)


def lines(
    series: Sequence[Line],
    across: Axis,
    up: Axis,
    *,
    title: str,
    description: str,
    dots: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Curves in the order of `series`, bands beneath all of them, and named dots above."""
    parts = [_frame(across, up)]
    for index, line in enumerate(series):
        if line.low and len(line.x) > 1:
            edge = _traced(across, up, line.x, line.high) + _traced(across, up, line.x, line.low)[::-1]
            opacity = 0.22 if line.thick else 0.07
            parts.append(f'<polygon points="{_path(edge)}" fill="{_colour(index)}" fill-opacity="{opacity}"/>')
    for index, line in enumerate(series):
        placed = _traced(across, up, line.x, line.y)
        look = f'stroke="{_colour(index)}" stroke-width="{3.5 if line.thick else 1.8}"{_dash(index)}'
        x, y = placed[0]
        if all(abs(px - x) + abs(py - y) < SMALLEST for px, py in placed):
            parts.append(f'<rect x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12" fill="none" {look}/>')
        else:
            parts.append(f'<polyline points="{_path(placed)}" fill="none" {look}/>')
        row = TOP + 12 + 19 * index
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 14}" x2="{WIDTH - RIGHT + 42}" y1="{row - 4}" y2="{row - 4}" {look}/>'
            + _label(WIDTH - RIGHT + 50, row, line.name)
        )
    return svg([*parts, *_dots(dots, across, up)], title, description)


def _traced(across: Axis, up: Axis, x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Points in the order of x. What lies between two is a mix of both, which is a curve on a logarithmic axis."""
    ordered = sorted(zip(x, y, strict=True))
    if not across.logarithmic:
        return [_place(across, up, *point) for point in ordered]
    placed = [_place(across, up, *ordered[0])]
    for (x0, y0), (x1, y1) in pairwise(ordered):
        start, end = max(x0, across.low), max(x1, across.low)
        steps = max(1, round(STEPS * (across.at(x1) - across.at(x0))))
        for step in range(1, steps + 1):
            along = x1 if step == steps else start * (end / start) ** (step / steps)
            share = (along - x0) / (x1 - x0) if x1 > x0 else 1.0
            placed.append(_place(across, up, along, y0 + share * (y1 - y0)))
    return placed


def _dots(dots: Sequence[tuple[str, float, float]], across: Axis, up: Axis) -> list[str]:
    """Dots with their names beside them, moved apart where they would stand on each other."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for name, x, y in sorted(dots, key=lambda dot: -dot[2]):
        px, py = _place(across, up, x, y)
        wide = CHARACTER * min(len(name), NAME_CHARACTERS)
        right = px + 8 + wide < WIDTH - RIGHT
        start = px + 8 if right else px - 8 - wide
        row = py - 7
        while any(
            abs(row - other) < BETWEEN_NAMES and start < end and begin < start + wide for begin, end, other in taken
        ):
            row += 1.0
        taken.append((start, start + wide, row))
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4.5" fill="var(--ink)"><title>{_text(name)}</title></circle>'
            + "".join(
                _label(px + 8 if right else px - 8, row + 4, name, "start" if right else "end", kind)
                for kind in ("halo", "")
            )
        )
    return parts


def stacked(
    rows: Sequence[tuple[str, Mapping[str, float]]], across: str, up: str, *, title: str, description: str
) -> str:
    """A bar for each row, of shares that add up to 1, in the order of the first row's names."""
    names = list(rows[0][1])
    width, tall = (WIDTH - LEFT - RIGHT) / len(rows), HEIGHT - TOP - BOTTOM
    parts = [_frame(Axis(across, 0, 1), Axis(up, 0.0, 1.0), ticks_across=False, percent=True)]
    for index, (label, shares) in enumerate(rows):
        bottom = float(HEIGHT - BOTTOM)
        for number, name in enumerate(names):
            height = tall * shares[name]
            bottom -= height
            parts.append(
                f'<rect x="{LEFT + index * width + 3:.1f}" y="{bottom:.1f}" width="{width - 6:.1f}" '
                f'height="{height:.1f}" fill="{_colour(number)}"{_faint(number)}>'
                f"<title>{_text(name)}: {100 * shares[name]:.1f} % at {_text(label)}</title></rect>"
            )
            if height > 16:
                middle = LEFT + (index + 0.5) * width
                parts.append(_label(middle, bottom + height / 2 + 4, f"{100 * shares[name]:.0f}", "middle", "on"))
        parts.append(_label(LEFT + (index + 0.5) * width, HEIGHT - BOTTOM + 18, label, "middle"))
    for number, name in enumerate(names):
        y = TOP + 12 + 19 * number
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 10}" width="14" height="11" fill="{_colour(number)}"'
            f"{_faint(number)}/>" + _label(WIDTH - RIGHT + 36, y, name)
        )
    return svg(parts, title, description)


def svg(parts: Sequence[str], title: str, description: str) -> str:
    """The element, with its title and description."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(title)}">'
        f"<title>{_text(title)}</title><desc>{_text(description)}</desc>{''.join(parts)}</svg>"
    )


def _frame(across: Axis, up: Axis, *, ticks_across: bool = True, percent: bool = False) -> str:
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" fill="none" '
        f'stroke="var(--faint)"/>',
        _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across.label, "middle"),
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{_text(up.label)}</text>',
    ]
    for value in up.ticks():
        y = _place(across, up, across.low, value)[1]
        said = f"{100 * value:g} %" if percent else f"{value:.4g}"
        parts.append(_rule(LEFT, WIDTH - RIGHT, y, y) + _label(LEFT - 8, y + 4, said, "end"))
    for value in across.ticks() if ticks_across else ():
        x = _place(across, up, value, up.low)[0]
        parts.append(_rule(x, x, TOP, HEIGHT - BOTTOM) + _label(x, HEIGHT - BOTTOM + 18, f"{value:.4g}", "middle"))
    return "".join(parts)


def _place(across: Axis, up: Axis, x: float, y: float) -> tuple[float, float]:
    return (
        LEFT + across.at(x) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - up.at(y) * (HEIGHT - TOP - BOTTOM),
    )


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="var(--faint)" stroke-width="0.6"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> str:
    return f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if DASHES[index % len(DASHES)] else ""


def _faint(index: int) -> str:
    return "" if index < len(COLOURS) else f' opacity="{1 / (1 + index // len(COLOURS)):.2f}"'


def _label(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    shown = text if len(text) <= NAME_CHARACTERS or anchor == "middle" else text[: NAME_CHARACTERS - 1] + "…"
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{look}>{_text(shown)}</text>'


def _text(value: object) -> str:
    return html.escape(str(value))
