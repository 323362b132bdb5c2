"""The judgement of `evaluate` as one HTML file: tables and plots in inline SVG, nothing loaded from anywhere.

Enters: the dictionary of `evaluate`. Leaves: a string. Computes nothing but pixel positions. Needs no JavaScript: what
a plot shows is in the tables and in the text report beneath.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from onebeat.conductor.learning import plots, report_text
from onebeat.conductor.learning.choosing import ORACLE, ROUTER

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --faint: #d8d8d8; --warn: #fff3d6 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --faint: #3a3a3a; --warn: #40361c } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
       color: var(--ink); background: var(--paper) }
.wide { overflow-x: auto } figure { margin: 1rem 0 } figcaption, caption { text-align: left; font-size: .9em }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid var(--faint) }
th { font-weight: 600 } tbody th { font-weight: 400 } li { background: var(--warn); padding: 0 .4rem }
svg { width: 100%; height: auto } svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
svg text.on { fill: #ffffff; font-weight: 600 }
svg text.halo { fill: none; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round }
pre { overflow-x: auto; font-size: 12px }
"""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"onebeat eval: {html.escape(str(result['router']))}"
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{_text(result['recipe'])}; {result['prompts']} prompts with every score, {result['prediction']['cells']} "
        f"outcomes of {result['prediction']['prompts']} prompts ({_text(result['split'])}).</p>",
        "".join(["<ul>", *(f"<li>{_text(note)}</li>" for note in result["notes"]), "</ul>"] if result["notes"] else []),
    ]
    if result["prompts"]:
        sections += _choices(result)
    if result["logged"]:
        sections += ["<h2>What the log says</h2>", _figure(logged_plot(result["logged"]), _LOGGED)]
    sections += [
        "<h2>Models: predicted and actual</h2>",
        _models(result),
        "<h2>All figures</h2>",
        f"<pre>{_text(chr(10).join(report_text.lines(result)))}</pre>",
        f"<p>Read: {_text('; '.join(result['read']))}</p>",
    ]
    body = "\n".join(sections)
    head = (
        f'<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
    )
    return f'<!doctype html>\n<html lang="en">{head}\n<body><main>\n{body}\n</main></body></html>\n'


_BANDS = "Bands are the central 95 % over resampled prompts of the mean quality at each position of the dial."
_LOGGED = "The doubly robust estimate of the mean quality at the dial's tenths, with its 95 % interval."


def _choices(result: Mapping[str, Any]) -> list[str]:
    sections = [
        "<h2>Quality for money</h2>",
        _figure(curve_plot(result), _BANDS),
        _routers(result),
        "<h2>Who answers, along the dial</h2>",
        _figure(share_plot(result["tradeoffs"]), "The share of requests, in percent, that each model gets."),
        _dial(result["tradeoffs"]),
    ]
    held = result["routellm"]
    if held["routers"][ROUTER]["pgr"]:
        sections += [
            f"<h2>Between two models: {_text(held['strong'])} and {_text(held['weak'])}</h2>",
            _figure(
                pgr_plot(held),
                "Performance gap recovered (RouteLLM): 0 is the weak model's quality and 1 the strong one's. "
                "Bands are the central 95 % over resampled prompts.",
            ),
        ]
    return sections


def curve_plot(result: Mapping[str, Any]) -> str:
    """Quality against dollars (logarithmic), one line per router, its band, and a dot per model."""
    curves: Mapping[str, Mapping[str, Sequence[float]]] = result["curves"]
    series = [
        plots.Line(
            name,
            curve["usd_per_thousand"],
            curve["quality"],
            curve.get("quality_low", ()),
            curve.get("quality_high", ()),
            thick=name == ROUTER,
        )
        for name, curve in curves.items()
    ]
    dots = [(m["name"], m["usd_per_thousand"], m["quality"]) for m in result["models"]]
    across = [x for line in series for x in line.x] + [dot[1] for dot in dots]
    up = [y for line in series for y in (*line.y, *line.low, *line.high)] + [dot[2] for dot in dots]
    return plots.lines(
        series,
        plots.axis("mean cost, USD per thousand requests (logarithmic)", across, logarithmic=True),
        plots.axis("mean quality (score, 0 to 1)", up),
        title="Quality for money",
        description=f"Mean quality against mean cost for {', '.join(curves)} and for every single model.",
        dots=dots,
    )


def pgr_plot(held: Mapping[str, Any]) -> str:
    """PGR over the share of calls to the strong model, one line per router, beside the coin's diagonal."""
    series = []
    for name, one in held["routers"].items():
        found = one["pgr"]
        low, high = found.get("low", ()), found.get("high", ())
        if name == ORACLE or None in (*low, *high):
            low = high = ()
        series.append(plots.Line(name, found["share_of_strong_calls"], found["pgr"], low, high, thick=name == ROUTER))
    series.append(plots.Line("a coin", (0.0, 1.0), (0.0, 1.0)))
    return plots.lines(
        series,
        plots.axis(f"share of calls to {held['strong']}", (0.0, 1.0)),
        plots.axis("performance gap recovered", [y for line in series for y in (*line.y, *line.low, *line.high)]),
        title="Performance gap recovered",
        description=f"PGR over the share of calls to {held['strong']} for {', '.join(line.name for line in series)}.",
    )


def logged_plot(held: Mapping[str, Any]) -> str:
    """Off-policy quality over the dial, beside what the log earned."""
    rows = held["tradeoffs"]
    place = [row["tradeoff"] for row in rows]
    ends = [row["doubly_robust"]["interval"] or [row["doubly_robust"]["value"]] * 2 for row in rows]
    series = [
        plots.Line(
            f"{ROUTER}, doubly robust",
            place,
            [row["doubly_robust"]["value"] for row in rows],
            [end[0] for end in ends],
            [end[1] for end in ends],
            thick=True,
        ),
        plots.Line("inverse propensity", place, [row["inverse_propensity"]["value"] for row in rows]),
        plots.Line("as logged", (place[0], place[-1]), [held["as_logged"]["quality"]] * 2),
    ]
    return plots.lines(
        series,
        plots.axis("tradeoff: cheap (0) to best (1)", place),
        plots.axis("mean quality (score, 0 to 1)", [y for line in series for y in (*line.y, *line.low, *line.high)]),
        title="What the router would have earned on the log",
        description="Estimated mean quality at the dial's tenths, beside what the logged choices earned.",
    )


def share_plot(tradeoffs: Sequence[Mapping[str, Any]]) -> str:
    """Stacked bars: the share of requests that each model gets at each tenth of the dial."""
    return plots.stacked(
        [(f"{row['tradeoff']:g}", row["share"]) for row in tradeoffs],
        "tradeoff: cheap (0) to best (1)",
        "share of requests",
        title="Who answers, along the dial",
        description="At each tenth of the dial, the share of requests that each model gets, as in the table beneath.",
    )


def _routers(result: Mapping[str, Any]) -> str:
    best = result["always"]["best"]
    free = best["usd_per_thousand"] <= 0
    rows = []
    for name, figures in result["routers"].items():
        ends = figures["intervals"]
        row = [name]
        for key in ("cost_at_best_quality", "cost_at_95_percent"):
            row.append("undefined" if free else report_text.share(figures[key], ends.get(key)))
        row.append(report_text.points(figures["points_at_half_cost"], ends.get("points_at_half_cost")))
        row += [report_text.figure(figures[key], ends.get(key)) for key in ("aiq", "arena_score")]
        shown = "ahead_of" in figures and name != ORACLE
        rows.append([*row, report_text.ahead(figures["ahead_of"]) if shown else ""])
    head = ("", "cost to equal it", "cost at 95 %", "points at half cost", "AIQ", "arena score", "onebeat ahead")
    caption = (
        f"Against always {best['model']} (quality {best['quality']:.4f}, {best['usd_per_thousand']:.4f} USD per "
        "thousand): costs as shares of its cost, quality in percentage points against its quality, with 95 % intervals."
    )
    return _table(caption, head, rows)


def _dial(tradeoffs: Sequence[Mapping[str, Any]]) -> str:
    names = list(tradeoffs[0]["share"])
    rows = [
        [f"{row['tradeoff']:g}", f"{row['quality']:.4f}", f"{row['usd_per_thousand']:.4f}"]
        + [f"{100 * row['share'][name]:.1f} %" for name in names]
        for row in tradeoffs
    ]
    return _table("The dial at its tenths.", ("tradeoff", "quality", "USD per thousand", *names), rows)


def _models(result: Mapping[str, Any]) -> str:
    alone = {one["name"]: one for one in result.get("models", ())}
    rows = []
    for row in result["prediction"]["per_model"]:
        one = alone.get(row["name"])
        rows.append(
            [
                row["name"],
                str(row["cells"]),
                *("none" if row[key] is None else f"{row[key]:.4f}" for key in ("predicted", "actual", "auc")),
                *((f"{one['quality']:.4f}", f"{one['usd_per_thousand']:.4f}") if one else ("", "")),
            ]
        )
    head = ("model", "outcomes", "mean predicted", "mean actual", "AUC", "quality, judged prompts", "USD per thousand")
    return _table("Mean prediction and mean score over all outcomes of each model.", head, rows)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{_text(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _text(value: object) -> str:
    return html.escape(str(value))
