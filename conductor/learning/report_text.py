"""The judgement of `evaluate` as text for a terminal.

Enters: the dictionary of `evaluate`. Leaves: lines. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onebeat.conductor.learning.choosing import ORACLE, ROUTER
from onebeat.conductor.learning.compare import PAIR_SHARES, pgr_at

Ends = Sequence[float | None] | None


def lines(result: Mapping[str, Any]) -> list[str]:
    """The whole report."""
    prediction = result["prediction"]
    text = [
        f"router {result['router']} ({result['recipe']}), judged on {_prompts(result)}: {result['split']}",
        *result["notes"],
        "",
        *_models(result),
        "",
        f"AUC {figure(prediction['auc'], prediction['auc_interval'])}, within source "
        f"{figure(prediction['auc_within_source'], prediction['auc_within_source_interval'])}, "
        f"calibration error {figure(prediction['calibration_error'], prediction['calibration_error_interval'])}",
    ]
    sections: list[list[str]] = []
    if result["prompts"]:
        sections += [_against_best(result), _field(result), _two_models(result["routellm"]), _targets(result)]
        sections.append(_tradeoffs(result))
    if result["logged"]:
        sections.append(_logged(result["logged"]))
    return text + [line for section in sections if section for line in ("", *section)]


def _prompts(result: Mapping[str, Any]) -> str:
    whole, prediction = result["prompts"], result["prediction"]
    if result["prompts_without_every_score"]:
        return f"{whole} prompts with every score, {prediction['cells']} outcomes of {prediction['prompts']} prompts"
    return f"{whole} prompts"


def _models(result: Mapping[str, Any]) -> list[str]:
    """The single models, dearest first: on the prompts with every score, then on all outcomes."""
    means = {row["name"]: row for row in result["prediction"]["per_model"]}
    alone = result.get("models", [{"name": name, "quality": None, "usd_per_thousand": None} for name in means])
    rows = [f"{'models':34}{'quality':>10}{'USD/1000':>10}{'outcomes':>11}{'predicted':>11}{'actual':>9}{'AUC':>8}"]
    for one in alone:
        mean = means[one["name"]]
        rows.append(
            f"  {one['name']:32}{_number(one['quality'], 4):>10}{_number(one['usd_per_thousand'], 4):>10}"
            f"{mean['cells']:>11}{_number(mean['predicted'], 4):>11}{_number(mean['actual'], 4):>9}"
            f"{_number(mean['auc'], 3):>8}"
        )
    return rows


def _against_best(result: Mapping[str, Any]) -> list[str]:
    best = result["always"]["best"]
    free = best["usd_per_thousand"] <= 0
    rows = [
        f"against always {best['model']} (chosen on {result['best_single_chosen_on']}): quality {best['quality']:.4f}, "
        f"{best['usd_per_thousand']:.4f} USD/1000" + (", so that no cost is a share of its cost" if free else ""),
        f"{'':26}{'cost to equal it':>26}{'cost at 95 %':>26}{'points at half cost':>26}",
    ]
    for name, figures in result["routers"].items():
        ends = figures["intervals"]
        costs = [
            "undefined" if free else share(figures[key], ends.get(key))
            for key in ("cost_at_best_quality", "cost_at_95_percent")
        ]
        gained = points(figures["points_at_half_cost"], ends.get("points_at_half_cost"))
        rows.append(f"{name:26}{costs[0]:>26}{costs[1]:>26}{gained:>26}")
    return rows


def _field(result: Mapping[str, Any]) -> list[str]:
    compared = any("ahead_of" in figures for figures in result["routers"].values())
    ahead_head = f"{ROUTER} ahead at every cost" if compared else ""
    rows = [f"{'':26}{'AIQ (RouterBench)':>26}{'RouterArena score':>26}{ahead_head:>28}".rstrip()]
    for name, figures in result["routers"].items():
        ends = figures["intervals"]
        row = f"{name:26}{figure(figures['aiq'], ends.get('aiq')):>26}"
        row += f"{figure(figures['arena_score'], ends.get('arena_score')):>26}"
        if "ahead_of" in figures and name != ORACLE:
            row += f"{ahead(figures['ahead_of']):>28}"
        rows.append(row)
    return rows


def _two_models(held: Mapping[str, Any]) -> list[str]:
    calls = f"PGR at {' / '.join(f'{100 * share:g}' for share in PAIR_SHARES)} %"
    rows = [
        f"RouteLLM's measures, of choosing between {held['strong']} (strong) and {held['weak']} (weak)",
        f"{'':26}{'APGR':>24}{'CPT(50)':>24}{'CPT(80)':>24}{calls:>24}",
    ]
    routers = held["routers"]
    if all(one["pgr"] is None for one in routers.values()):
        return [*rows[:1], "  undefined: the strong model is no better than the weak one on these prompts"]
    for name, one in routers.items():
        ends = one["intervals"]
        recovered = " / ".join(_number(pgr_at(one, share), 2) for share in PAIR_SHARES)
        rows.append(
            f"{name:26}{figure(one['apgr'], ends.get('apgr'), 3):>24}{share(one['cpt50'], ends.get('cpt50')):>24}"
            f"{share(one['cpt80'], ends.get('cpt80')):>24}{recovered:>24}"
        )
    without = routers[ROUTER].get("resamples_without_a_gap", 0.0)
    if without:
        rows.append(
            f"in {100 * without:.1f} % of resamples the strong model is no better, and no share is ever reached"
        )
    return rows


def _targets(result: Mapping[str, Any]) -> list[str]:
    rows = ["target      tradeoff   promised                 measured                 USD/1000   holds"]
    for row in result["targets"]:
        if "unreachable" in row:
            rows.append(f"{row['target']:12}{row['unreachable']}")
            continue
        promised = f"{100 * row['promised_share']:.1f} % {ends_of(row['promised_interval'], 1, 100)}"
        measured = f"{100 * row['measured_share']:.1f} % {ends_of(row['measured_interval'], 1, 100)}"
        rows.append(
            f"{row['target']:12}{row['tradeoff']:8.4f}   {promised:24} {measured:24} "
            f"{row['measured_usd_per_thousand']:8.4f}   {'yes' if row['holds'] else 'NO'}"
        )
    return rows if result["targets"] else []


def _tradeoffs(result: Mapping[str, Any]) -> list[str]:
    rows = ["tradeoff   quality   USD/1000   who answers"]
    for row in result["tradeoffs"]:
        chosen = sorted(row["share"].items(), key=lambda item: -item[1])
        who = ", ".join(f"{name} {100 * share:.0f} %" for name, share in chosen[:4] if share >= 0.005)
        rows.append(f"{row['tradeoff']:8.2f}{row['quality']:10.4f}{row['usd_per_thousand']:11.4f}   {who}")
    return rows


def _logged(held: Mapping[str, Any]) -> list[str]:
    """What the log says of the dial's tenths."""
    was = held["as_logged"]
    rows = [
        f"from the log of {held['prompts']} prompts that one model each answered, by their propensities; as logged: "
        f"quality {was['quality']:.4f}, {was['usd_per_thousand']:.4f} USD/1000",
        f"tradeoff{'quality, doubly robust':>26}{'inverse propensity':>26}{'USD/1000':>28}"
        f"{'speaks for':>12}{'blind':>8}",
    ]
    for row in held["tradeoffs"]:
        robust, inverse, usd = row["doubly_robust"], row["inverse_propensity"], row["usd_per_thousand"]
        rows.append(
            f"{row['tradeoff']:8.2f}{figure(robust['value'], robust['interval']):>26}"
            f"{figure(inverse['value'], inverse['interval']):>26}{figure(usd['value'], usd['interval']):>28}"
            f"{row['effective_prompts']:12.0f}{100 * row['blind']:6.0f} %"
        )
    if not held["propensities_fit"]:
        rows.append("WARNING: the log's choices do not come as often as its propensities say; trust neither estimate")
    return rows


def ahead(held: Mapping[str, Any]) -> str:
    """Whether the router is ahead at every cost that both reach, by more than the interval."""
    said = held["ahead_everywhere_beyond_interval"]
    return "not compared" if said is None else "yes, beyond the interval" if said else "no"


def figure(value: float | None, ends: Ends, digits: int = 4) -> str:
    """A figure with its interval."""
    return "undefined" if value is None else f"{value:.{digits}f} {ends_of(ends, 3)}".strip()


def share(value: float | None, ends: Ends) -> str:
    """A share as a percentage with its interval; None is "never", an end of it, too."""
    return " ".join(["never" if value is None else f"{100 * value:.1f} %", ends_of(ends, 1, 100)]).strip()


def points(value: float | None, ends: Ends) -> str:
    """Percentage points, signed."""
    return " ".join(["never" if value is None else f"{value:+.2f}", ends_of(ends, 2, 1.0, "+")]).strip()


def ends_of(ends: Ends, digits: int, scale: float = 1.0, sign: str = "") -> str:
    """An interval; an end that is None is "never"."""
    if ends is None or all(end is None for end in ends):
        return ""
    return f"[{', '.join('never' if end is None else f'{scale * end:{sign}.{digits}f}' for end in ends)}]"


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"
