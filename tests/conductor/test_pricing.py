"""Dollars, against sums done by hand."""

from __future__ import annotations

import pytest

from onebeat.conductor.answers import Usage
from onebeat.conductor.config import Model, Tier
from onebeat.conductor.pricing import PriceList, cost_usd, dearest, expected_usd


def model(input_usd: float = 3.0, output_usd: float = 15.0, **fields: object) -> Model:
    return Model(
        provider=str(fields.pop("provider", "p")),
        context_tokens=1000,
        input_usd_per_million=input_usd,
        output_usd_per_million=output_usd,
        **fields,  # type: ignore[arg-type]
    )


SONNET = model(
    cached_input_usd_per_million=0.3,
    cache_write_usd_per_million=3.75,
    tiers=(Tier(200_000, 6.0, 22.5, 0.6), Tier(500_000, 8.0, 30.0)),
)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(1000, 100), 0.003 + 0.0015),
        (Usage(1000, 100, cached_input_tokens=900), 100 * 3e-6 + 900 * 0.3e-6 + 0.0015),
        (Usage(1000, 0, cached_input_tokens=500, cache_write_tokens=500), 500 * 0.3e-6 + 500 * 3.75e-6),
        (Usage(200_000, 0), 0.6),
        (Usage(200_001, 1000), 200_001 * 6e-6 + 0.0225),
        (Usage(600_000, 0, cached_input_tokens=600_000), 600_000 * 8e-6),
        (Usage(10, 0, cached_input_tokens=50), 50 * 0.3e-6),
    ],
)
def test_cost(usage: Usage, usd: float) -> None:
    assert cost_usd(SONNET, usage) == pytest.approx(usd)


def test_expected_cost_uses_the_tier_of_the_prompt() -> None:
    assert expected_usd(SONNET, 1000, 100) == pytest.approx(0.0045)
    assert expected_usd(SONNET, 300_000, 100) == pytest.approx(1.8 + 0.00225)


def test_the_price_goes_by_the_model_that_answered() -> None:
    models = {
        "gpt-4o": model(2.5, 10),
        "gpt-4o-mini": model(0.15, 0.6),
        "frozen": model(2.0, 8.0, upstream="gpt-4o-2024-08-06"),
        "other": model(9, 9, provider="q", upstream="gpt-4o-2024-11-20"),
    }
    prices = PriceList(models)
    for _ in range(2):  # found, then remembered
        assert prices.of_response("gpt-4o", "gpt-4o") is models["gpt-4o"]
        assert prices.of_response("gpt-4o", "gpt-4o-2024-08-06") is models["frozen"]
        assert prices.of_response("gpt-4o", "gpt-4o-2024-11-20") is models["gpt-4o"]
        assert prices.of_response("gpt-4o", "gpt-4o-mini-2024-07-18") is models["gpt-4o-mini"]
        assert prices.of_response("gpt-4o", "something-else") is models["gpt-4o"]
        assert prices.of_response("gpt-4o-mini", "models/gpt-4o-mini") is models["gpt-4o-mini"]


def test_the_dearest_is_a_chat_model() -> None:
    assert dearest({"a": model(1, 1), "b": model(2, 2), "w": model(99, 99, capabilities=("transcription",))}) == "b"
    assert dearest({}) is None
