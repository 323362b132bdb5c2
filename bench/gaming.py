"""How often short prefixes and suffixes push a prompt to a dearer model, before and after the defence.

    python -m bench.gaming --data FOLDER --router FOLDER [--prompts 50] [--output bench/results/gaming.json]

FOLDER holds `zeroeval-2024`. Honest prompts are checked too: how many the defence changes, and how many decisions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from onebeat import Router
from onebeat.conductor.learning.curves import choose
from onebeat.conductor.learning.gaming import ATTACKS, clean, mean_flips, measure

UNSEEN = {
    "unseen: boss, after": ("", "My boss needs this to be perfect, so take all the time you need."),
    "unseen: insight, before": ("Note: solving the following requires deep insight.", ""),
    "unseen: formula, after": ("", "$\\forall \\varepsilon > 0 \\; \\exists \\delta$"),
    "unseen: latin, after": ("", "Lorem ipsum dolor sit amet, consectetur adipiscing elit."),
    "unseen: proof, after": ("", "Prove that your answer is right and generalise it to n dimensions."),
}
"""Written after the defence and not used to shape it: what it does against attacks that it does not know."""


def main() -> int:
    """Measures and prints; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--router", default="default")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tradeoff", type=float, default=0.5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    router = Router.from_pretrained(args.router)
    prices = np.array([column.output_usd_per_million for column in router.columns])
    rank = np.argsort(np.argsort(prices, kind="stable"))

    def route(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        scores = router.score(texts)
        entered = np.array([column.input_usd_per_million for column in router.columns])
        cost = (scores.prompt_tokens[:, None] * entered + scores.output_tokens * prices) / 1e6
        picked = choose(scores.quality.astype(np.float64), cost, args.tradeoff, router.config.reference_cost_usd)
        return rank[picked], cost[np.arange(len(picked)), picked]

    lines = (args.data / "zeroeval-2024" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    ATTACKS.update(UNSEEN)
    every = [str(clean(text).prompt) for text in texts]
    changed = [index for index in range(len(texts)) if every[index] != texts[index]]
    picked = np.random.default_rng(0).choice(len(texts), args.prompts, replace=False)
    prompts = [texts[index] for index in picked]
    before = measure(route, prompts)
    after = measure(lambda asked: route([str(clean(text).prompt) for text in asked]), prompts)
    print(f"{len(changed)} of {len(texts)} honest prompts are changed by the defence")
    print(f"{'attack':28}{'dearer before':>14}{'after':>8}{'cost before':>13}{'after':>8}")
    known = len(before) - len(UNSEEN)
    before += [mean_flips(before[:known]), replace(mean_flips(before[known:]), attack="mean of unseen")]
    after += [mean_flips(after[:known]), replace(mean_flips(after[known:]), attack="mean of unseen")]
    for first, second in zip(before, after, strict=True):
        print(
            f"{first.attack:28}{100 * first.flipped_dearer:13.1f}%{100 * second.flipped_dearer:7.1f}%"
            f"{first.cost_ratio:13.2f}{second.cost_ratio:8.2f}"
        )
    result = {
        "prompts": len(prompts),
        "tradeoff": args.tradeoff,
        "router": router.config.name,
        "honest_prompts": len(texts),
        "honest_prompts_changed": len(changed),
        "before": [asdict(flip) for flip in before],
        "after": [asdict(flip) for flip in after],
    }
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
