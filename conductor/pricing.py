"""What a call costs: list prices, tiers by prompt length, cached tokens, and the price of the model that answered.

Enters: a fleet's models and the usage of an answer. Leaves: dollars. Knows no request and no provider's wire.
"""

from __future__ import annotations

from collections.abc import Mapping

from onebeat.conductor.answers import Usage
from onebeat.conductor.config import Model, Tier

PER_MILLION = 1e-6


def rates(model: Model, prompt_tokens: int) -> Model | Tier:
    """The prices that hold for a prompt of this length: the highest tier that it is above, else the model's own."""
    held: Model | Tier = model
    above = -1
    for tier in model.tiers:
        if prompt_tokens > tier.above_prompt_tokens > above:
            held, above = tier, tier.above_prompt_tokens
    return held


def cost_usd(model: Model, usage: Usage) -> float:
    """Dollars for one answer. Cached prompt tokens at their own price where there is one, else at the full price."""
    held = rates(model, usage.input_tokens)
    cached_price = held.cached_input_usd_per_million
    if cached_price is None:
        cached_price = held.input_usd_per_million
    write_price = model.cache_write_usd_per_million
    if write_price is None or held is not model:
        write_price = held.input_usd_per_million
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    plain = max(0, usage.input_tokens - cached - written)
    input_usd = plain * held.input_usd_per_million + cached * cached_price + written * write_price
    return PER_MILLION * (input_usd + usage.output_tokens * held.output_usd_per_million)


def expected_usd(model: Model, prompt_tokens: int, output_tokens: float) -> float:
    """Dollars that an answer of the predicted length would cost, nothing cached."""
    held = model if not model.tiers else rates(model, prompt_tokens)
    input_usd = prompt_tokens * held.input_usd_per_million
    return PER_MILLION * (input_usd + output_tokens * held.output_usd_per_million)


class PriceList:
    """Finds the price of the model that a response names, which may not be the one that was asked for."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._found: dict[tuple[str, str], Model] = {}

    def of_response(self, asked: str, response_model: str) -> Model:
        """The fleet's entry of `asked`'s provider that `response_model` names, or is a dated snapshot of; else `asked`.

        "gpt-4o-2024-08-06" in answer to "gpt-4o" is priced as the entry with that very name if the fleet has one, else
        as the entry whose name is its longest beginning.
        """
        found = self._found.get((asked, response_model))
        if found is None:
            found = self._search(asked, response_model)
            if len(self._found) < 4096:  # Providers invent names; a memo must not grow with them.
                self._found[asked, response_model] = found
        return found

    def _search(self, asked: str, response_model: str) -> Model:
        own = self._models[asked]
        best, length = own, 0
        # Gemini and Vertex say "models/NAME"; the path is not part of the name.
        response_model = response_model.removeprefix("models/")
        for name, model in self._models.items():
            if model.provider != own.provider:
                continue
            upstream = model.upstream or name
            if upstream == response_model:
                # Two entries may share an upstream name (other fallbacks, say): the one that was asked for wins.
                if model is own or (own.upstream or asked) != response_model:
                    return model
            elif response_model.startswith(upstream + "-") and len(upstream) > length:
                best, length = model, len(upstream)
        return best


def dearest(models: Mapping[str, Model]) -> str | None:
    """The model with the highest price for 500 tokens in and 500 out; None where the fleet has no chat model."""
    chat = [name for name, model in models.items() if "transcription" not in model.capabilities]
    return max(chat, key=lambda name: (expected_usd(models[name], 500, 500), name), default=None)
