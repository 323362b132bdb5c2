"""Gemini's side of the simulation: requests read, answers and errors written, by its docs and its SDK."""

from __future__ import annotations

import json
from typing import Any

from tools.simulated_providers.openai_format import Frames, Refused
from tools.simulated_providers.script import Fault
from tools.simulated_providers.speech import Asked, Speech, tokens

FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
FINISH["wrong"] = "OTHER"
DONE = b""
PING = b": keep-alive\n\n"


def read(body: dict[str, Any], model: str | None = None) -> Asked:
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        raise Refused("INVALID_ARGUMENT", "* GenerateContentRequest.contents: contents is not specified", None)
    if any(not content.get("parts") for content in contents):
        raise Refused("INVALID_ARGUMENT", "Unable to submit request because it must have a parts field", None)
    config = body.get("generationConfig") or {}
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    declared = [each for tool in body.get("tools") or () for each in tool.get("functionDeclarations", ())]
    last = contents[-1]
    system = _text(body.get("systemInstruction") or {})
    names = calling.get("allowedFunctionNames") or [None]
    return Asked(
        model=str(model),
        stream=False,
        question=next((_text(c) for c in reversed(contents) if c.get("role") != "model" and _text(c)), ""),
        prompt_characters=len(system) + sum(len(_text(content)) for content in contents),
        tools=tuple((each["name"], _schema(each)) for each in declared),
        forced_tool=names[0],
        may_call=calling.get("mode") != "NONE",
        has_tool_result=any("functionResponse" in part for part in last["parts"]),
        wants_json=config.get("responseMimeType") == "application/json",
        schema=config.get("responseJsonSchema") or _lower(config.get("responseSchema")),
        prefill=_text(last) if last.get("role") == "model" else None,
        max_tokens=config.get("maxOutputTokens"),
    )


def _schema(declaration: dict[str, Any]) -> dict[str, Any]:
    # Google's JSON takes both spellings of a name, and its SDK mixes them.
    schema = declaration.get("parametersJsonSchema") or declaration.get("parameters_json_schema")
    schema = schema or _lower(declaration.get("parameters"))
    return schema or {}


def _lower(schema: Any) -> Any:
    """Gemini's own schemas name types in capitals."""
    if isinstance(schema, dict):
        return {k: v.lower() if k == "type" and isinstance(v, str) else _lower(v) for k, v in schema.items()}
    return schema


def _text(content: dict[str, Any]) -> str:
    parts = content.get("parts", ())
    texts = [part["text"] for part in parts if "text" in part]
    texts += [json.dumps(part["functionResponse"].get("response")) for part in parts if "functionResponse" in part]
    return " ".join(texts)


def usage(speech: Speech, thoughts: int, candidates: int) -> dict[str, Any]:
    counted = {
        "promptTokenCount": speech.input_tokens,
        "candidatesTokenCount": candidates,
        "totalTokenCount": speech.input_tokens + candidates + thoughts,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": speech.input_tokens}],
    }
    if thoughts:
        counted["thoughtsTokenCount"] = thoughts
    if speech.cached_tokens:
        counted["cachedContentTokenCount"] = speech.cached_tokens
    return counted


def _body(speech: Speech, parts: list[dict[str, Any]], finish: str | None, counted: dict[str, Any]) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": counted,
        "modelVersion": speech.model,
        "responseId": speech.id,
    }


def _calls(speech: Speech) -> list[dict[str, Any]]:
    parts = []
    for index, call in enumerate(speech.calls):
        part: dict[str, Any] = {"functionCall": {"name": call.name, "args": json.loads(call.arguments)}}
        if index == 0:
            part["thoughtSignature"] = "c2lnbmF0dXJl"
        parts.append(part)
    return parts


def whole(speech: Speech) -> bytes:
    parts: list[dict[str, Any]] = []
    if speech.reasoning:
        parts.append({"text": "".join(speech.reasoning), "thought": True})
    if speech.text:
        parts.append({"text": speech.text})
    counted = usage(speech, speech.reasoning_tokens, speech.output_tokens - speech.reasoning_tokens)
    return json.dumps(_body(speech, parts + _calls(speech), FINISH[speech.finish], counted)).encode()


def frames(speech: Speech, asked: Asked) -> Frames:
    """(beginning, content with each frame's text, ending). Every frame reports usage; there is no last word."""

    def frame(parts: list[dict[str, Any]], finish: str | None, thoughts: int, candidates: int) -> bytes:
        counted = usage(speech, thoughts, candidates)
        return b"data: " + json.dumps(_body(speech, parts, finish, counted)).encode() + b"\r\n\r\n"

    content: list[tuple[bytes, str]] = []
    thought, said = "", ""
    for piece in speech.reasoning:
        thought += piece
        content.append((frame([{"text": piece, "thought": True}], None, tokens(thought), 0), piece))
    for piece in speech.pieces:
        said += piece
        content.append((frame([{"text": piece}], None, tokens(thought), tokens(said)), piece))
    candidates = speech.output_tokens - speech.reasoning_tokens
    if speech.calls:
        arguments = "".join(call.arguments for call in speech.calls)
        content.append((frame(_calls(speech), None, tokens(thought), candidates), arguments))
    ending = frame([{"text": ""}], FINISH[speech.finish], tokens(thought), candidates)
    return [], content, [ending, DONE]


def error_body(code: int, status: str, message: str, details: list[dict[str, Any]] | None = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = details
    return json.dumps({"error": error}).encode()


def blocked(asked: Asked) -> bytes:
    """What Gemini answers to a blocked prompt: 200, no candidates, and the reason."""
    counted = {"promptTokenCount": 0, "totalTokenCount": 0}
    return json.dumps({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": counted}).encode()


def error(fault: Fault, reset_s: float) -> tuple[int, dict[str, str], bytes]:
    quota = "type.googleapis.com/google.rpc.QuotaFailure"
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{reset_s:.3f}s"}
    per = "GenerateRequestsPerDayPerProject" if fault is Fault.QUOTA else "GenerateRequestsPerMinutePerProject"
    failure = {"@type": quota, "violations": [{"quotaMetric": "generate_requests", "quotaId": per}]}
    exhausted = "You exceeded your current quota, please check your plan and billing details."
    table: dict[Fault, tuple[int, str, str, list[dict[str, Any]]]] = {
        Fault.RATE_LIMIT: (429, "RESOURCE_EXHAUSTED", exhausted, [failure, retry]),
        Fault.RATE_LIMIT_BARE: (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", []),
        Fault.QUOTA: (429, "RESOURCE_EXHAUSTED", exhausted, [failure, retry]),
        Fault.ERROR_500: (500, "INTERNAL", "An internal error has occurred.", []),
        Fault.ERROR_503: (503, "UNAVAILABLE", "The model is overloaded. Please try again later.", []),
        Fault.ERROR_529: (529, "UNAVAILABLE", "Overloaded.", []),
        Fault.CONTEXT_OVERFLOW: (
            400,
            "INVALID_ARGUMENT",
            "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
            [],
        ),
        Fault.PREFILL_REFUSED: (
            400,
            "INVALID_ARGUMENT",
            "Please ensure that single turn requests end with a user role.",
            [],
        ),
        Fault.AUTH: (
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
        ),
        Fault.NOT_FOUND: (404, "NOT_FOUND", "models/x is not found for API version v1beta.", []),
    }
    status, name, message, details = table[fault]
    return status, {}, error_body(status, name, message, details)


def error_frame() -> bytes:
    return b"data: " + error_body(503, "UNAVAILABLE", "The model is overloaded.") + b"\r\n\r\n"
