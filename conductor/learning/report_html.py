"""The judgement of `evaluate` as one HTML file: tables and plots in inline SVG, nothing loaded from anywhere.

Enters: the dictionary of `evaluate`. Leaves: a string. Computes nothing but pixel positions.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from onebeat.conductor.learning import report_text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 440, 70, 210, 20, 50
COLOURS = ("#0b62d6", "#d64b0b", "#1b8a3a", "#8a1b7e", "#6b6b6b", "#b58900", "#00838f")
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --faint: #d8d8d8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --faint: #3a3a3a } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
       color: var(--ink); background: var(--paper) }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid var(--faint) }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } pre { overflow-x: auto; font-size: 12px }
"""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"onebeat eval: {html.escape(str(result['router']))}"
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{_text(result['recipe'])}; judged on {result['prompts']} prompts ({_text(result['split'])}).</p>",
        "<h2>Quality for money</h2>",
        curve_plot(result),
        "<h2>Who answers, along the dial</h2>",
        share_plot(result["tradeoffs"]),
        "<h2>Models</h2>",
        _table(
            ("model", "quality", "USD per thousand", "AUC of its column"),
            [
                (m["name"], f"{m['quality']:.4f}", f"{m['usd_per_thousand']:.4f}", _auc(result, m["name"]))
                for m in result["models"]
            ],
        ),
        "<h2>All figures</h2>",
        f"<pre>{_text(chr(10).join(report_text.lines(result)))}</pre>",
        f"<p>Read: {_text('; '.join(result['read']))}</p>",
    ]
    body = "\n".join(sections)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en">{head}\n{body}\n</html>\n'


def curve_plot(result: Mapping[str, Any]) -> str:
    """Quality against dollars (logarithmic), one line per router and a dot per model."""
    curves: Mapping[str, Sequence[Sequence[float]]] = result["curves"]
    models = result["models"]
    costs = [max(m["usd_per_thousand"], 1e-9) for m in models] + [
        max(point[0], 1e-9) for points in curves.values() for point in points
    ]
    qualities = [m["quality"] for m in models] + [point[1] for points in curves.values() for point in points]
    left, right = math.log10(min(costs)), math.log10(max(costs))
    low, high = min(qualities), max(qualities)

    def place(cost: float, quality: float) -> tuple[float, float]:
        x = LEFT + (math.log10(max(cost, 1e-9)) - left) / max(right - left, 1e-9) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (quality - low) / max(high - low, 1e-9) * (HEIGHT - TOP - BOTTOM)
        return x, y

    parts = [_frame("USD per thousand requests (logarithmic)", "mean quality")]
    for step in range(5):
        quality = low + (high - low) * step / 4
        cost = 10 ** (left + (right - left) * step / 4)
        parts.append(_label(LEFT - 8, place(10**left, quality)[1] + 4, f"{quality:.3f}", "end"))
        parts.append(_label(place(cost, low)[0], HEIGHT - BOTTOM + 18, f"{cost:.3g}", "middle"))
    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        ordered = sorted((point[0], point[1]) for point in points)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in ordered))
        thick = 3 if name == "onebeat" else 1.5
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        row = TOP + 14 + 18 * index
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{row - 9}" width="12" height="4" fill="{colour}"/>')
        parts.append(_label(WIDTH - RIGHT + 30, row, name, "start"))
    for model in models:
        x, y = place(model["usd_per_thousand"], model["quality"])
        name = _text(model["name"])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--ink)"><title>{name}</title></circle>')
        parts.append(_label(x + 6, y - 6, model["name"], "start"))
    return _svg(parts)


def share_plot(tradeoffs: Sequence[Mapping[str, Any]]) -> str:
    """Stacked bars: the share of requests that each model gets at each tenth of the dial."""
    names = list(tradeoffs[0]["share"])
    width = (WIDTH - LEFT - RIGHT) / len(tradeoffs)
    tall = HEIGHT - TOP - BOTTOM
    parts = [_frame("tradeoff: cheap to best", "share of requests")]
    for index, row in enumerate(tradeoffs):
        bottom = float(HEIGHT - BOTTOM)
        for number, name in enumerate(names):
            height = tall * row["share"][name]
            bottom -= height
            colour = COLOURS[number % len(COLOURS)]
            opacity = 1.0 if number < len(COLOURS) else 0.5
            parts.append(
                f'<rect x="{LEFT + index * width + 2:.1f}" y="{bottom:.1f}" width="{width - 4:.1f}" '
                f'height="{height:.1f}" fill="{colour}" opacity="{opacity}">'
                f"<title>{_text(name)}: {100 * row['share'][name]:.1f} %</title></rect>"
            )
        parts.append(_label(LEFT + (index + 0.5) * width, HEIGHT - BOTTOM + 18, f"{row['tradeoff']:g}", "middle"))
    for number, name in enumerate(names):
        y = TOP + 14 + 18 * number
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(_label(WIDTH - RIGHT + 30, y, name, "start"))
    return _svg(parts)


def _frame(below: str, beside: str) -> str:
    middle = (HEIGHT - BOTTOM + TOP) / 2
    return (
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}" fill="none" '
        f'stroke="var(--faint)"/>{_label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, below, "middle")}'
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{_text(beside)}</text>'
    )


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>{cells}</table>"


def _auc(result: Mapping[str, Any], name: str) -> str:
    value = result["prediction"]["auc_per_model"][name]
    return "undefined" if value is None else f"{value:.3f}"


def _text(value: object) -> str:
    return html.escape(str(value))
