"""The demo: a dozen real prompts routed by the default router, in a table.

Run by tools/demo, which makes the environment first. Fetches the default router once if it is not here yet.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time

from onebeat.commands.pull import ProgressBar
from onebeat.engine.errors import OnebeatError
from onebeat.engine.pull import pull
from onebeat.engine.router import Router
from tools import demo_gateway

LONG_TEXT = (
    "The committee met on Tuesday to review the proposal for the new harbour wall, its cost, its effect on the "
    "fishery, and the objections that had been raised by the residents of the lower town. "
) * 160

PROMPTS = {
    "arithmetic": "What is 17 * 23?",
    "word problem": "A train leaves at 9:40 and arrives at 13:05 after two stops of 7 minutes. How long did it move?",
    "competition maths": "How many ordered pairs (a, b) of positive integers have lcm(a, b) = 2^3 * 3^5 * 5^2?",
    "geometry": "A circle of radius 6 is inscribed in a right triangle of hypotenuse 26. What is its area?",
    "code": "def f(s):\n    return ''.join(c for i, c in enumerate(s) if i % 2)\n\nWhat does f('onebeat') return?",
    "code review": "Why does this Go program deadlock?\n\nch := make(chan int)\nch <- 1\nfmt.Println(<-ch)",
    "logic puzzle": "Three boxes are labelled apples, oranges, both; every label is wrong. Which box must you open?",
    "prose": "Write a short, warm note to a colleague who is leaving after eleven years.",
    "knowledge": "Why did the Library of Alexandria decline?",
    "French": "Explique en deux phrases pourquoi le ciel est bleu.",
    "Chinese": "请用简单的语言解释什么是量子纠缠。",
    "long text": LONG_TEXT + "\nSummarise the objections in three bullet points.",
}


def main() -> int:
    """Prints one row per prompt and what it would cost to send all of them to the best model instead."""
    try:
        pull(progress=ProgressBar())
        start = time.perf_counter()
        router = Router.from_pretrained("default")
    except OnebeatError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(f"Router loaded in {time.perf_counter() - start:.2f} s; {len(router.columns)} models:")
    print(textwrap.fill(", ".join(column.name for column in router.columns), 110, initial_indent="  "))
    route_all(router)
    print("\nNow the gateway: an ordinary OpenAI client, three simulated vendors, and trouble.")
    asyncio.run(demo_gateway.run(PROMPTS))
    return 0


def route_all(router: Router) -> None:
    """One table: the choice at two settings of the dial, with what it is predicted to deliver, cost and take."""
    print(f"\n{'prompt':18} {'tokens':>6}  {'tradeoff 0.5':26} {'quality':>7} {'$':>9}  ", end="")
    print(f"{'tradeoff 0.9':26} {'quality':>7} {'$':>9} {'ms':>6}")
    spent = {0.5: 0.0, 0.9: 0.0}
    always_best = 0.0
    for name, prompt in PROMPTS.items():
        scores = router.score([prompt])
        decisions = {tradeoff: router.decide(scores, tradeoff=tradeoff) for tradeoff in spent}
        print(f"{name:18} {decisions[0.5].prompt_tokens:6}  ", end="")
        for tradeoff, decision in decisions.items():
            chosen = decision.scores[0]
            spent[tradeoff] += chosen.cost_usd
            print(f"{chosen.model:26} {chosen.quality:7.2f} {chosen.cost_usd:9.6f}  ", end="")
        always_best += max(decisions[0.5].scores, key=lambda candidate: candidate.quality).cost_usd
        cut = " (cut)" if decisions[0.5].cut_tokens else ""
        print(f"{scores.timing[0].total_ms:5.1f}{cut}")
    print(f"\nPredicted spend: ${spent[0.5]:.5f} at 0.5, ${spent[0.9]:.5f} at 0.9; ", end="")
    print(f"${always_best:.5f} if each went to the model that is predicted best for it.")
    print(f"Why, for the last one: {decisions[0.9].reason}")


if __name__ == "__main__":
    sys.exit(main())
