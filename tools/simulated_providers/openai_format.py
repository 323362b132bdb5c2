"""OpenAI's side of the simulation: requests read, answers and errors written, by its API reference and SDK."""

from __future__ import annotations

import json
import time
from typing import Any

from tools.simulated_providers.script import Fault
from tools.simulated_providers.speech import Asked, Speech

FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}
FINISH["wrong"] = "tool_calls"
DONE = b"data: [DONE]\n\n"
PING = b": keep-alive\n\n"


Frames = tuple[list[bytes], list[tuple[bytes, str]], list[bytes]]


class Refused(Exception):
    """The vendor's 400: (code, message, param)."""


def read(body: dict[str, Any], model: str | None = None) -> Asked:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("invalid_request_error", "Invalid 'messages': empty array.", "messages")
    name = str(body.get("model"))
    if name.startswith(("gpt-5", "o3", "o4")):
        if "max_tokens" in body:
            raise Refused(
                "unsupported_parameter",
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
                "max_tokens",
            )
        if body.get("temperature") not in (None, 1):
            raise Refused("unsupported_value", "Unsupported value: 'temperature' is not 1.", "temperature")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise Refused("invalid_request_error", "'stream_options' is only allowed when 'stream' is true.", "stream")
    form = body.get("response_format") or {}
    choice = body.get("tool_choice")
    tools = tuple(
        (tool["function"]["name"], tool["function"].get("parameters") or {})
        for tool in body.get("tools") or ()
        if tool.get("type") == "function"
    )
    last = messages[-1]
    return Asked(
        model=name,
        stream=bool(body.get("stream")),
        question=next((_text(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), ""),
        prompt_characters=sum(len(_text(m.get("content"))) for m in messages),
        tools=tools,
        forced_tool=choice["function"]["name"] if isinstance(choice, dict) and "function" in choice else None,
        may_call=choice != "none",
        has_tool_result=last.get("role") == "tool",
        wants_json=form.get("type") in ("json_object", "json_schema"),
        schema=(form.get("json_schema") or {}).get("schema"),
        prefill=_text(last.get("content")) if last.get("role") == "assistant" else None,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""


def usage(speech: Speech) -> dict[str, Any]:
    return {
        "prompt_tokens": speech.input_tokens,
        "completion_tokens": speech.output_tokens,
        "total_tokens": speech.input_tokens + speech.output_tokens,
        "prompt_tokens_details": {"cached_tokens": speech.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": speech.reasoning_tokens, "audio_tokens": 0},
    }


def whole(speech: Speech) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": speech.text, "refusal": None, "annotations": []}
    if speech.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in speech.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[speech.finish]}
    return json.dumps(
        {
            "id": f"chatcmpl-{speech.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": speech.model,
            "choices": [choice],
            "usage": usage(speech),
            "system_fingerprint": "fp_simulated",
        }
    ).encode()


def frames(speech: Speech, asked: Asked) -> Frames:
    """(beginning, content with each frame's text, ending): the ending is usage, then the vendor's last word."""
    base = {
        "id": f"chatcmpl-{speech.id}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": speech.model,
        "system_fingerprint": "fp_simulated",
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps({**base, "choices": [choice], "obfuscation": "x7f"}).encode() + b"\n\n"

    begin = [chunk({"role": "assistant", "content": "" if not speech.calls else None, "refusal": None})]
    content = [(chunk({"reasoning_content": piece}), piece) for piece in speech.reasoning]
    content += [(chunk({"content": piece}), piece) for piece in speech.pieces]
    for index, call in enumerate(speech.calls):
        function: dict[str, Any] = {"name": call.name, "arguments": ""}
        opening = {"index": index, "id": call.id, "type": "function", "function": function}
        content.append((chunk({"tool_calls": [opening]}), ""))
        for begin_at in range(0, len(call.arguments), 5):
            text = call.arguments[begin_at : begin_at + 5]
            content.append((chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]}), text))
    ending = [chunk({}, FINISH[speech.finish])]
    if asked.include_usage:
        ending.append(b"data: " + json.dumps({**base, "choices": [], "usage": usage(speech)}).encode() + b"\n\n")
    return begin, content, [*ending, DONE]


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


def error(fault: Fault, reset_s: float) -> tuple[int, dict[str, str], bytes]:
    if fault is Fault.RATE_LIMIT:
        headers = {
            "retry-after-ms": str(int(reset_s * 1000)),
            "retry-after": str(int(-(-reset_s // 1))),
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": f"{int(reset_s * 1000)}ms",
        }
        return 429, headers, error_body("Rate limit reached for requests.", "requests", "rate_limit_exceeded")
    table = {
        Fault.RATE_LIMIT_BARE: (429, "Rate limit reached.", "requests", "rate_limit_exceeded"),
        Fault.QUOTA: (429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        Fault.ERROR_500: (500, "The server had an error while processing your request.", "server_error", None),
        Fault.ERROR_503: (503, "The engine is currently overloaded.", "server_error", "service_unavailable"),
        Fault.ERROR_529: (529, "Overloaded.", "server_error", "overloaded"),
        Fault.CONTEXT_OVERFLOW: (
            400,
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
            "invalid_request_error",
            "context_length_exceeded",
        ),
        Fault.CONTENT_FILTER: (
            400,
            "Your request was rejected as a result of our safety system.",
            "invalid_request_error",
            "content_policy_violation",
        ),
        Fault.PREFILL_REFUSED: (400, "Prefill is not supported.", "invalid_request_error", "prefill_not_supported"),
        Fault.AUTH: (401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
        Fault.NOT_FOUND: (404, "The model does not exist.", "invalid_request_error", "model_not_found"),
    }
    status, message, kind, code = table[fault]
    return status, {}, error_body(message, kind, code)


def error_frame() -> bytes:
    return b"data: " + error_body("The server had an error.", "server_error", None) + b"\n\n"
