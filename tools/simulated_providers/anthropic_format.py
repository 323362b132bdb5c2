"""Anthropic's side of the simulation: requests read, answers and errors written, by its docs and its SDK."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from tools.simulated_providers.openai_format import Frames, Refused
from tools.simulated_providers.script import Fault
from tools.simulated_providers.speech import Asked, Speech

FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
FINISH["wrong"] = "tool_use"
DONE = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
NO_PREFILL = "This model does not support assistant message prefill. The conversation must end with a user message."
_REFUSES_PREFILL = re.compile(r"claude-(opus|sonnet|haiku)-(4-[6-9]|[5-9])")
_REFUSES_SAMPLING = re.compile(r"claude-(opus|sonnet|haiku)-(4-[7-9]|[5-9])")


def read(body: dict[str, Any], model: str | None = None) -> Asked:
    name = str(body.get("model"))
    messages = body.get("messages")
    if not isinstance(body.get("max_tokens"), int):
        raise Refused("invalid_request_error", "max_tokens: Field required", None)
    if not isinstance(messages, list) or not messages:
        raise Refused("invalid_request_error", "messages: at least one message is required", None)
    if any(message.get("role") not in ("user", "assistant") for message in messages):
        raise Refused("invalid_request_error", "messages: Unexpected role", None)
    if messages[-1]["role"] == "assistant" and _REFUSES_PREFILL.search(name):
        raise Refused("invalid_request_error", NO_PREFILL, None)
    if "temperature" in body and ("top_p" in body or _REFUSES_SAMPLING.search(name)):
        raise Refused("invalid_request_error", "`temperature` cannot be set for this model.", None)
    choice = body.get("tool_choice") or {}
    form = (body.get("output_config") or {}).get("format") or {}
    last = messages[-1]
    system = _text(body.get("system"))
    return Asked(
        model=name,
        stream=bool(body.get("stream")),
        question=next((_text(m["content"]) for m in reversed(messages) if m["role"] == "user"), ""),
        prompt_characters=len(system) + sum(len(_text(m["content"])) for m in messages),
        tools=tuple((tool["name"], tool.get("input_schema") or {}) for tool in body.get("tools") or ()),
        forced_tool=choice.get("name"),
        may_call=choice.get("type") != "none",
        has_tool_result=isinstance(last["content"], list)
        and any(block.get("type") == "tool_result" for block in last["content"]),
        wants_json=bool(form) or "one JSON object" in system,
        schema=form.get("schema"),
        prefill=_text(last["content"]) if last["role"] == "assistant" else None,
        max_tokens=body["max_tokens"],
    )


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = []
    for block in content:
        if block.get("type") == "text":
            if not block["text"]:
                raise Refused("invalid_request_error", "messages: text content blocks must be non-empty", None)
            texts.append(block["text"])
        elif block.get("type") == "tool_result":
            texts.append(_text(block.get("content")))
    return " ".join(texts)


def usage(speech: Speech, output_tokens: int | None = None) -> dict[str, Any]:
    written = {
        "input_tokens": speech.input_tokens - speech.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": speech.cached_tokens,
        "output_tokens": speech.output_tokens if output_tokens is None else output_tokens,
    }
    if speech.reasoning_tokens and output_tokens is None:
        written["output_tokens_details"] = {"thinking_tokens": speech.reasoning_tokens}  # type: ignore[assignment]
    return written


def whole(speech: Speech) -> bytes:
    content: list[dict[str, Any]] = []
    if speech.reasoning:
        content.append({"type": "thinking", "thinking": "".join(speech.reasoning), "signature": "c2lnbmF0dXJl"})
    if speech.text:
        content.append({"type": "text", "text": speech.text, "citations": None})
    for call in speech.calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)})
    return json.dumps({**_head(speech), "content": content, **_stop(speech), "usage": usage(speech)}).encode()


def _head(speech: Speech) -> dict[str, Any]:
    return {"id": f"msg_{speech.id}", "type": "message", "role": "assistant", "model": speech.model}


def _stop(speech: Speech) -> dict[str, Any]:
    reason = "refusal" if speech.is_refusal else FINISH[speech.finish]
    return {"stop_reason": reason, "stop_sequence": None}


def _frame(kind: str, body: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **body})}\n\n".encode()


def frames(speech: Speech, asked: Asked) -> Frames:
    """(beginning, content with each frame's text, ending): the ending is usage, then the vendor's last word."""
    message = {**_head(speech), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage(speech, 1)}
    begin = [_frame("message_start", {"message": message}), PING]
    content: list[tuple[bytes, str]] = []
    index = 0

    def block(start: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
        nonlocal index
        content.append((_frame("content_block_start", {"index": index, "content_block": start}), ""))
        for delta in deltas:
            text = delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
            content.append((_frame("content_block_delta", {"index": index, "delta": delta}), text))
        content.append((_frame("content_block_stop", {"index": index}), ""))
        index += 1

    if speech.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in speech.reasoning]
        deltas.append({"type": "signature_delta", "signature": "c2lnbmF0dXJl"})
        block({"type": "thinking", "thinking": "", "signature": ""}, deltas)
    if speech.pieces:
        block({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in speech.pieces])
    for call in speech.calls:
        pieces = [call.arguments[at : at + 5] for at in range(0, len(call.arguments), 5)]
        start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        block(start, [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces)])
    ending = _frame("message_delta", {"delta": _stop(speech), "usage": usage(speech)})
    return begin, content, [ending, DONE]


def error_body(kind: str, message: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_sim"}).encode()


def moment(in_s: float) -> str:
    """RFC 3339, `in_s` seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat().replace("+00:00", "Z")


def error(fault: Fault, reset_s: float) -> tuple[int, dict[str, str], bytes]:
    if fault is Fault.RATE_LIMIT:
        headers = {
            "retry-after": str(int(-(-reset_s // 1))),
            "anthropic-ratelimit-requests-limit": "60",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": moment(reset_s),
        }
        return 429, headers, error_body("rate_limit_error", "This request would exceed your rate limit.")
    table = {
        Fault.RATE_LIMIT_BARE: (429, "rate_limit_error", "This request would exceed your rate limit."),
        Fault.QUOTA: (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        Fault.ERROR_500: (500, "api_error", "Internal server error"),
        Fault.ERROR_503: (503, "api_error", "Service unavailable"),
        Fault.ERROR_529: (529, "overloaded_error", "Overloaded"),
        Fault.CONTEXT_OVERFLOW: (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
        Fault.CONTENT_FILTER: (400, "invalid_request_error", "Output blocked by content filtering policy"),
        Fault.PREFILL_REFUSED: (400, "invalid_request_error", NO_PREFILL),
        Fault.AUTH: (401, "authentication_error", "invalid x-api-key"),
        Fault.NOT_FOUND: (404, "not_found_error", "model: no such model"),
    }
    status, kind, message = table[fault]
    return status, {}, error_body(kind, message)


def error_frame() -> bytes:
    return b"event: error\ndata: " + error_body("overloaded_error", "Overloaded") + b"\n\n"
