"""The policy is pure: capabilities, then constraints, then utility; retired models give way; it always says why."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable

import pytest

from onebeat.conductor.config import Fleet
from onebeat.conductor.context import PromptSize
from onebeat.conductor.fleet_file import parse_fleet
from onebeat.conductor.policy import (
    Ask,
    Plan,
    Status,
    named_plan,
    plan,
    takes_over,
)
from onebeat.conductor.routes import Prediction, RouteTable
from onebeat.engine.errors import ConstraintError

TODAY = datetime.date(2026, 6, 1)
FLEET = """
[providers.p]
kind = "openai"
base_url = "http://127.0.0.1:1"
region = "us"
[providers.e]
kind = "anthropic"
base_url = "http://127.0.0.1:2"
region = "eu"
[models.big]
provider = "p"
context_tokens = 200_000
capabilities = ["tools", "images"]
input_usd_per_million = 10
output_usd_per_million = 30
prior_quality = 0.9
expensive = true
[models.small]
provider = "p"
context_tokens = 8_000
max_output_tokens = 4_000
capabilities = ["tools"]
input_usd_per_million = 0.1
output_usd_per_million = 0.4
prior_quality = 0.6
scored_as = "tiny"
[models.euro]
provider = "e"
context_tokens = 32_000
input_usd_per_million = 1
output_usd_per_million = 2
prior_quality = 0.7
"""
SHORT = PromptSize(400, 0, 4)


def table(text: str = FLEET, **router: object) -> RouteTable:
    fleet: Fleet = parse_fleet(text)
    return RouteTable(fleet, {"tiny": Prediction(0.3, 100)}, TODAY)


def free(name: str) -> Status:
    return Status()


def decide(
    predictions: dict[str, Prediction] | None = None,
    status: Callable[[str], Status] = free,
    text: str = FLEET,
    draw: Callable[[], float] | None = None,
    **ask: object,
) -> Plan:
    fields = {"size": SHORT, "tradeoff": 0.5, **ask}
    return plan(table(text), Ask(**fields), predictions, status, draw)  # type: ignore[arg-type]


def names(made: Plan) -> list[str]:
    return [choice.route.name for choice in made.choices]


def test_the_dial_runs_from_cheap_to_best() -> None:
    assert names(decide(tradeoff=1.0))[0] == "big"
    assert names(decide(tradeoff=0.0))[0] == "small"


def test_predictions_are_read_by_column_and_priors_are_said() -> None:
    predictions = {"tiny": Prediction(0.99, 50), "big": Prediction(0.5, 50)}
    made = decide(predictions, tradeoff=1.0)
    assert names(made) == ["small", "euro", "big"] and made.decided_by == "router"
    assert made.choices[0].output_tokens == 50
    assert "Decided on priors" not in made.decision.reason
    made = decide(None)
    assert made.decided_by == "prior" and "Decided on priors" in made.decision.reason


def test_capabilities_come_before_everything() -> None:
    assert names(decide(tradeoff=0.0, needs=frozenset({"tools", "images"}))) == ["big"]
    assert names(decide(tradeoff=0.0, region="eu")) == ["euro"]
    with pytest.raises(ConstraintError, match=r"big: it lacks audio; small: it lacks audio"):
        decide(needs=frozenset({"audio"}))


def test_a_key_out_of_expensive_calls_gets_the_others() -> None:
    assert "big" not in names(decide(tradeoff=1.0, expensive_allowed=False))


def test_room_is_kept_for_the_answer() -> None:
    long = PromptSize(int(3.8 * 7_000), 0, 4)
    made = decide(size=long, tradeoff=0.0)
    assert "small" not in names(made) and made.overflowing == ("small",)
    assert "small" in names(decide(size=long, tradeoff=0.0, max_output_tokens=100))
    assert "small" not in names(decide(tradeoff=0.0, max_output_tokens=5_000))
    assert "small" not in names(decide({"tiny": Prediction(0.9, 3_950)}, tradeoff=0.0, size=PromptSize(20_000, 0, 0)))
    with pytest.raises(ConstraintError, match="exceed its 200000"):
        decide(size=PromptSize(4_000_000, 0, 4))


def test_constraints_name_what_failed() -> None:
    with pytest.raises(ConstraintError, match=r"min_quality 0\.95 failed"):
        decide(min_quality=0.95)
    assert names(decide(max_cost_usd=0.001, tradeoff=1.0))[0] != "big"


def test_a_route_near_its_limit_is_avoided_before_it_says_429() -> None:
    predictions = {"big": Prediction(0.7, 10), "euro": Prediction(0.69, 10)}
    assert names(decide(predictions, tradeoff=1.0))[0] == "big"
    made = decide(predictions, lambda name: Status(headroom=0.01 if name == "big" else 1.0), tradeoff=1.0)
    assert names(made)[0] != "big" and "big" in names(made)


def test_a_retired_model_gives_way_and_says_so() -> None:
    text = FLEET.replace("[models.big]", '[models.big]\nshutdown_date = 2026-05-31\nsuccessor = "euro"')
    made = named_plan(table(text), Ask(SHORT, 0.5), ["big"], free)
    assert names(made) == ["euro"] and "shut down on 2026-05-31; its successor euro" in made.notes[0]
    assert "big" not in names(decide(text=text))
    text = text.replace('\nsuccessor = "euro"', "")
    with pytest.raises(ConstraintError, match="names no successor"):
        named_plan(table(text), Ask(SHORT, 0.5), ["big"], free)


def test_successors_are_followed_to_one_still_in_service() -> None:
    text = FLEET.replace("[models.big]", '[models.big]\nshutdown_date = 2026-05-31\nsuccessor = "euro"')
    text = text.replace("[models.euro]", '[models.euro]\nshutdown_date = 2026-06-01\nsuccessor = "small"')
    assert names(named_plan(table(text), Ask(SHORT, 0.5), ["big"], free)) == ["small"]


def test_a_concrete_model_keeps_its_order_and_its_name() -> None:
    made = named_plan(table(), Ask(SHORT, 0.5), ["small", "big", "small", "euro"], free)
    assert names(made) == ["small", "big", "euro"] and made.decided_by == "named"
    with pytest.raises(ConstraintError, match="it lacks images"):
        named_plan(table(), Ask(SHORT, 0.5, needs=frozenset({"images"})), ["small"], free)


def test_a_blocked_first_choice_is_noted_and_stays_in_order() -> None:
    made = decide(status=lambda n: Status(3.0, "rate_limited") if n == "big" else Status(), tradeoff=1.0)
    assert names(made)[0] == "big" and made.notes == ("big: rate_limited",)


def test_nearly_as_good_is_the_policys_word() -> None:
    made = decide({"big": Prediction(0.8, 1), "euro": Prediction(0.77, 1), "tiny": Prediction(0.5, 1)}, tradeoff=1.0)
    first, second, third = made.choices
    policy = table().fleet.policy
    assert takes_over(policy, first, second) and not takes_over(policy, first, third)


def test_exploration_draws_by_its_share_and_logs_true_propensities() -> None:
    text = "[router]\nexploration_share = 0.3\n" + FLEET
    chance = random.Random(1)
    firsts: dict[str, int] = {}
    propensities: dict[str, float] = {}
    fleet = table(text)
    for _ in range(5_000):
        made = plan(fleet, Ask(SHORT, 1.0), None, free, chance.random)
        assert sum(c.propensity for c in made.choices) == pytest.approx(1.0)
        firsts[names(made)[0]] = firsts.get(names(made)[0], 0) + 1
        propensities |= {c.route.name: c.propensity for c in made.choices}
    for name, count in firsts.items():
        assert count / 5_000 == pytest.approx(propensities[name], abs=0.03)
    assert propensities["small"] > 0.02


def test_without_exploration_nothing_is_drawn() -> None:
    def never() -> float:
        raise AssertionError("drew")

    assert decide(draw=never).choices[0].propensity == 1.0
