"""The judgement of `evaluate` as text for a terminal.

Enters: the dictionary of `evaluate`. Leaves: lines. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(result: Mapping[str, Any]) -> list[str]:
    """The whole report."""
    best = result["always"]["best"]
    prediction = result["prediction"]
    text = [
        f"router {result['router']} ({result['recipe']}), judged on {result['prompts']} prompts: {result['split']}",
        *result["notes"],
        "",
        "models                                        quality   USD/1000",
    ]
    text += [f"  {m['name']:42} {m['quality']:8.4f} {m['usd_per_thousand']:10.4f}" for m in result["models"]]
    text += [
        "",
        f"AUC {_with_interval(prediction['auc'], prediction['auc_interval'])}, within source "
        f"{_with_interval(prediction['auc_within_source'], prediction['auc_within_source_interval'])}, "
        f"calibration error {prediction['calibration_error']:.4f}",
        "",
        f"against always {best['model']} (chosen on {result['best_single_chosen_on']}): quality {best['quality']:.4f}, "
        f"{best['usd_per_thousand']:.4f} USD/1000",
        f"{'':26}{'cost to equal it':>24}{'cost at 95 %':>24}{'points at half cost':>26}{'AIQ':>8}{'arena':>8}",
    ]
    for name, figures in result["routers"].items():
        ends = figures.get("intervals", {})
        text.append(
            f"{name:26}"
            f"{_share(figures['cost_at_best_quality'], ends.get('cost_at_best_quality')):>24}"
            f"{_share(figures['cost_at_95_percent'], ends.get('cost_at_95_percent')):>24}"
            f"{_points(figures['points_at_half_cost'], ends.get('points_at_half_cost')):>26}"
            f"{figures['aiq']:8.4f}{figures['arena_score']:8.4f}"
        )
    for name, figures in result["routers"].items():
        if "ahead_of" in figures and name != "oracle":
            ahead = figures["ahead_of"]["ahead_everywhere_beyond_interval"]
            text.append(f"ahead of {name} at every cost, beyond the interval: {'yes' if ahead else 'no'}")
    text += ["", *_targets(result), "", *_tradeoffs(result)]
    if "routellm" in result:
        text += ["", "RouteLLM's measures            APGR   CPT(50)   CPT(80)"]
        text += [
            f"  {name:26}{_plain(v['apgr']):>8}{_percent(v['cpt50']):>10}{_percent(v['cpt80']):>10}"
            for name, v in result["routellm"].items()
        ]
    return text


def _targets(result: Mapping[str, Any]) -> list[str]:
    rows = ["target      tradeoff   promised                 measured                 USD/1000   holds"]
    for row in result["targets"]:
        if "unreachable" in row:
            rows.append(f"{row['target']:12}{row['unreachable']}")
            continue
        promised = f"{100 * row['promised_share']:.1f} % {_ends(row['promised_interval'], 100)}"
        measured = f"{100 * row['measured_share']:.1f} % {_ends(row['measured_interval'], 100)}"
        rows.append(
            f"{row['target']:12}{row['tradeoff']:8.4f}   {promised:24} {measured:24} "
            f"{row['measured_usd_per_thousand']:8.4f}   {'yes' if row['holds'] else 'NO'}"
        )
    return rows


def _tradeoffs(result: Mapping[str, Any]) -> list[str]:
    rows = ["tradeoff   quality   USD/1000   who answers"]
    for row in result["tradeoffs"]:
        chosen = sorted(row["share"].items(), key=lambda item: -item[1])
        who = ", ".join(f"{name} {100 * share:.0f} %" for name, share in chosen[:4] if share >= 0.005)
        rows.append(f"{row['tradeoff']:8.2f}{row['quality']:10.4f}{row['usd_per_thousand']:11.4f}   {who}")
    return rows


def _with_interval(value: float | None, ends: list[float] | None) -> str:
    return "undefined" if value is None else f"{value:.4f} {_ends(ends)}".strip()


def _ends(ends: list[float] | None, scale: float = 1.0) -> str:
    if ends is None:
        return ""
    digits = 1 if scale > 1 else 3
    return f"[{scale * ends[0]:.{digits}f}, {scale * ends[1]:.{digits}f}]"


def _share(value: float | None, ends: list[float] | None) -> str:
    return "never" if value is None else f"{100 * value:.1f} % {_ends(ends, 100)}".strip()


def _points(value: float | None, ends: list[float] | None) -> str:
    if value is None:
        return "never"
    return f"{value:+.2f} " + (f"[{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else "")


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "never" if value is None else f"{100 * value:.1f} %"
