"""What one model at a vendor takes, where models of one vendor differ.

Enters: the fleet's word on a model. Leaves: a record that its provider builds requests by. None means that the vendor
module goes by the model's name, or by the safer of the two.
"""

from __future__ import annotations

from msgspec import Struct


class Traits(Struct, frozen=True):
    sampling: bool | None = None
    """Takes temperature, top_p, top_k and penalties. Reasoning models of OpenAI and newer Claude models refuse them."""
    prefill: bool | None = None
    """Continues an assistant's message that ends the request."""
    reasoning: bool | None = None
    """Takes a reasoning effort or a thinking budget. None: sent only where the client wrote it in the same format."""
    thinking_by_budget: bool = False
    """An older Claude or Gemini 2.5: thinking is set in tokens; the newer ones take an effort."""
    json_schema: bool = True
    """Takes a JSON schema for the answer; where not, the schema goes into the system prompt."""
    default_max_output_tokens: int = 8192
    """Sent where the vendor insists on a number (Anthropic) and the client gave none."""
    compatible: bool = False
    """An OpenAI-compatible server, not OpenAI: `max_tokens` is its word, and `developer` is no role of it."""


def effort_of(effort: str | None, budget_tokens: int | None) -> str | None:
    """The effort that stands for a thinking budget; bands by what vendors document for low, medium and high."""
    if effort is not None or budget_tokens is None:
        return effort
    if budget_tokens <= 0:
        return "none"
    return "low" if budget_tokens <= 2048 else "medium" if budget_tokens <= 8192 else "high"


def budget_of(effort: str | None, budget_tokens: int | None) -> int | None:
    """The thinking budget that stands for an effort, by the same bands; 0 turns thinking off."""
    if budget_tokens is not None or effort is None:
        return budget_tokens
    return {"none": 0, "minimal": 1024, "low": 2048, "medium": 8192, "high": 16384}.get(effort, 24576)
