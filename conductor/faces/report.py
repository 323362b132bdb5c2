"""onebeat's own word on an answer: the `onebeat` block of a body, and the `x-onebeat-*` headers.

Enters: a `Report`. Leaves: a dict; headers that hold printable ASCII only.
"""

from __future__ import annotations

from onebeat.conductor.answers import Report

MAX_HEADER_CHARACTERS = 500


def block_of(report: Report, vendor_model: str) -> dict[str, object]:
    """`vendor_model`: what the vendor calls the model that answered, and what the price goes by."""
    block: dict[str, object] = {
        "model": report.model,
        "vendor_model": vendor_model,
        "reason": report.reason,
        "attempts": report.attempts,
        "cost_usd": report.cost_usd,
    }
    if report.request_id is not None:
        block["request_id"] = report.request_id
    if report.dropped_messages:
        block["dropped_messages"] = report.dropped_messages
    if report.notes:
        block["notes"] = report.notes
    if report.durable is not None:
        block["durable"] = report.durable
    return block


def headers_of(report: Report) -> dict[str, str]:
    """For a streamed answer these say what is known when it begins: the cost comes in the last block."""
    headers = {
        "x-onebeat-model": _plain(report.model),
        "x-onebeat-reason": _plain(report.reason),
        "x-onebeat-attempts": str(report.attempts),
    }
    if report.cost_usd is not None:
        headers["x-onebeat-cost-usd"] = f"{report.cost_usd:.8f}"
    if report.request_id is not None:
        headers["x-onebeat-request-id"] = _plain(report.request_id)
    if report.dropped_messages:
        headers["x-onebeat-dropped-messages"] = str(report.dropped_messages)
    if report.durable is not None:
        headers["x-onebeat-durable"] = "true" if report.durable else "false"
    return headers


def _plain(text: str) -> str:
    if text.isascii() and text.isprintable():  # Nearly always: a twentieth of the price of looking at each character.
        return text[:MAX_HEADER_CHARACTERS]
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:MAX_HEADER_CHARACTERS]
