"""What vendors say went wrong, and when to come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onebeat.conductor.answers import (
    ProblemKind,
)
from onebeat.conductor.providers.anthropic import AnthropicProvider
from onebeat.conductor.providers.base import Provider
from onebeat.conductor.providers.gemini import GeminiProvider
from onebeat.conductor.providers.headers import duration_s, retry_after_s, until_s
from onebeat.conductor.providers.openai import OpenAIProvider

NOW_S = 1_700_000_000.0

ERRORS: list[tuple[Provider, int, Any, ProblemKind]] = [
    (OpenAIProvider(), 400, {"error": {"message": "m", "code": "context_length_exceeded"}},
     ProblemKind.CONTEXT_OVERFLOW),
    (OpenAIProvider(), 400, {"error": {"message": "m", "code": "content_policy_violation"}},
     ProblemKind.CONTENT_POLICY),
    (OpenAIProvider(), 400, {"error": {"message": "the request exceeds the available context size", "code": 400}},
     ProblemKind.CONTEXT_OVERFLOW),
    (OpenAIProvider(), 400, {"object": "error", "message": "maximum context length is 4096", "code": 400},
     ProblemKind.CONTEXT_OVERFLOW),
    (OpenAIProvider(), 400, {"error": "model is required"}, ProblemKind.INVALID_REQUEST),
    (OpenAIProvider(), 422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, ProblemKind.INVALID_REQUEST),
    (OpenAIProvider(), 429, {"error": {"message": "m", "code": "rate_limit_exceeded"}}, ProblemKind.RATE_LIMITED),
    (OpenAIProvider(), 429, {"error": {"message": "m", "code": "insufficient_quota"}}, ProblemKind.QUOTA_EXHAUSTED),
    (OpenAIProvider(), 401, {"error": {"message": "m", "code": "invalid_api_key"}}, ProblemKind.AUTH),
    (OpenAIProvider(), 404, {"error": {"message": "m", "code": "model_not_found"}}, ProblemKind.NOT_FOUND),
    (OpenAIProvider(), 500, "<html>oops", ProblemKind.SERVER_ERROR),
    (OpenAIProvider(), 503, "", ProblemKind.OVERLOADED),
    (OpenAIProvider(), 504, "upstream timeout", ProblemKind.TIMEOUT),
    (OpenAIProvider(), 302, "", ProblemKind.MALFORMED),
    (AnthropicProvider(), 529, {"error": {"type": "overloaded_error", "message": "m"}}, ProblemKind.OVERLOADED),
    (AnthropicProvider(), 429, {"error": {"type": "rate_limit_error", "message": "m"}}, ProblemKind.RATE_LIMITED),
    (AnthropicProvider(), 400, {"error": {"type": "invalid_request_error", "message": "prompt is too long: 2 > 1"}},
     ProblemKind.CONTEXT_OVERFLOW),
    (AnthropicProvider(), 400,
     {"error": {"type": "invalid_request_error", "message": "This model does not support assistant message prefill."}},
     ProblemKind.PREFILL_REFUSED),
    (AnthropicProvider(), 400,
     {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}},
     ProblemKind.QUOTA_EXHAUSTED),
    (AnthropicProvider(), 400, {"error": {"type": "invalid_request_error", "message": "bad"}},
     ProblemKind.INVALID_REQUEST),
    (AnthropicProvider(), 402, {"error": {"type": "billing_error", "message": "m"}}, ProblemKind.QUOTA_EXHAUSTED),
    (AnthropicProvider(), 502, "Bad Gateway", ProblemKind.SERVER_ERROR),
    (GeminiProvider(), 503, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "m"}}, ProblemKind.OVERLOADED),
    (GeminiProvider(), 400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "bad"}}],
     ProblemKind.INVALID_REQUEST),
    (GeminiProvider(), 400,
     {"error": {"status": "INVALID_ARGUMENT", "message": "API key not valid.", "details": [
         {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]}}, ProblemKind.AUTH),
    (GeminiProvider(), 400, {"error": {"status": "INVALID_ARGUMENT",
                                       "message": "The input token count (12) exceeds the maximum (10)."}},
     ProblemKind.CONTEXT_OVERFLOW),
    (GeminiProvider(), 429, {"error": {"status": "RESOURCE_EXHAUSTED", "message": "m", "details": [
        {"@type": "x/google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProject"}]},
        {"@type": "x/google.rpc.RetryInfo", "retryDelay": "36s"}]}}, ProblemKind.QUOTA_EXHAUSTED),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "status", "body", "kind"), ERRORS)
def test_errors_mean_what_the_vendor_means(provider: Provider, status: int, body: Any, kind: ProblemKind) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    problem = provider.parse_error(status, {}, raw)
    assert problem.kind is kind
    assert problem.message and problem.status == status


def test_resets_come_from_headers_or_from_the_body() -> None:
    openai = OpenAIProvider("sk-key", now_s=lambda: NOW_S)
    headers = {
        "retry-after-ms": "1500",
        "retry-after": "9",
        "x-should-retry": "false",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-remaining-tokens": "149984",
    }
    problem = openai.parse_error(429, headers, b'{"error": {"message": "slow down"}}')
    assert (problem.retry_after_s, problem.is_retryable, problem.message) == (1.5, False, "slow down")
    assert problem.limits and problem.limits.requests and problem.limits.tokens
    assert (problem.limits.requests.reset_after_s, problem.limits.tokens.remaining) == (360.0, 149984)
    anthropic = AnthropicProvider(now_s=lambda: NOW_S)
    limits = anthropic.parse_limits(
        {
            "anthropic-ratelimit-input-tokens-remaining": "10",
            "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:14:20Z",
        }
    )
    assert limits and limits.input_tokens and limits.input_tokens.reset_after_s == 60.0
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.8s"}
    body = json.dumps({"error": {"code": 429, "message": "m", "details": [detail]}}).encode()
    problem = GeminiProvider().parse_error(429, {}, body)
    assert (problem.kind, problem.retry_after_s) == (ProblemKind.RATE_LIMITED, 45.8)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12ms", 0.012), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("45.8s", 45.8), ("7", 7.0), ("0s", 0.0), ("0", 0.0),
     ("soon", None), ("", None), ("1s later", None), ("-3", None), ("nan", None), ("inf", None)],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert duration_s(text) == pytest.approx(seconds) if seconds is not None else duration_s(text) is None


def test_dates_of_return() -> None:
    assert retry_after_s({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, NOW_S) == 60.0
    assert retry_after_s({"retry-after": "Tue, 14 Nov 2000 22:14:20 GMT"}, NOW_S) == 0.0
    assert retry_after_s({"retry-after": "whenever"}, NOW_S) is None
    assert until_s("2023-11-14T22:13:20", NOW_S) is None, "a time without a zone could be anyone's"
