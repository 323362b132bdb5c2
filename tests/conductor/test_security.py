"""Keys, budgets and limits refuse what they should, and no secret passes the redactor."""

from __future__ import annotations

import hashlib
import io
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.config import Key
from onebeat.conductor.records import Priority, RequestError
from onebeat.conductor.security import Client, KeyRing, Redactor, check_depth


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


RING = KeyRing({"team": Key(sha256=digest("s3cret")), "gone": Key(sha256=digest("old"), revoked=True)})


@pytest.mark.parametrize("headers", [{"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}])
def test_either_vendors_header_identifies(headers: dict[str, str]) -> None:
    assert RING.identify(headers).name == "team"


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "No API key"),
        ({"authorization": "Basic s3cret"}, "No API key"),
        ({"authorization": "Bearer wrong"}, "not known"),
        ({"x-api-key": digest("s3cret")}, "not known"),
        ({"x-api-key": "old"}, "revoked"),
        ({"x-api-key": "\udcff\udcfe"}, "not known"),
    ],
)
def test_others_get_a_401(headers: dict[str, str], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        RING.identify(headers)
    assert caught.value.status == 401


def test_rate_is_a_bucket_of_one_minute() -> None:
    client = Client("a", Key(sha256="", requests_per_minute=6))
    for _ in range(6):
        client.admit(1000.0)
    with pytest.raises(RequestError, match="6 requests a minute") as caught:
        client.admit(1000.0)
    assert caught.value.status == 429 and caught.value.retry_after_s == pytest.approx(10.0)
    client.admit(1010.0)
    with pytest.raises(RequestError):
        client.admit(1010.1)


def test_budget_is_per_day() -> None:
    client = Client("a", Key(sha256="", budget_usd_per_day=1.0))
    noon = 43_200.0
    client.charge(0.6, noon)
    client.admit(noon)
    client.charge(0.5, noon)
    with pytest.raises(RequestError, match="spent its 1 USD") as caught:
        client.admit(noon)
    assert caught.value.retry_after_s == pytest.approx(43_200.0)
    client.admit(86_401.0)


def test_expensive_calls_are_counted_by_the_hour() -> None:
    client = Client("a", Key(sha256="", expensive_calls_per_hour=2))
    for at in (0.0, 1.0):
        assert client.take_expensive(at)
    assert not client.expensive_allowed(3599.0)
    assert not client.take_expensive(3599.0) and client.expensive_free_in_s(3599.0) == pytest.approx(1.0)
    assert client.expensive_allowed(3600.0) and Client(None, None).take_expensive(0.0)
    assert client.take_expensive(3600.0) and not client.take_expensive(3600.5)
    client.give_back_expensive(3600.0)
    assert client.take_expensive(3600.5)


def test_a_budget_is_set_aside_before_it_is_spent() -> None:
    client = Client("a", Key(sha256="", budget_usd_per_day=1.0))
    noon = 43_200.0
    client.reserve(0.6, noon)
    client.reserve(0.6, noon)
    for refused in (lambda: client.reserve(0.1, noon), lambda: client.admit(noon)):
        with pytest.raises(RequestError, match="under way"):
            refused()
    client.settle(0.6, 0.1, noon)
    client.reserve(0.1, noon)
    client.settle(0.1, 0.0, noon)
    client.settle(0.6, 2.0, noon)
    with pytest.raises(RequestError, match=r"spent its 1 USD for today \(UTC\); "):
        client.reserve(0.0, noon)


@pytest.mark.parametrize("size", [8, 12, 20])
def test_a_key_that_a_cut_sentence_ends_in_is_hidden(size: int) -> None:
    key = "vendorkey-0123456789abcdef"
    assert Redactor([key]).text(f"no such key: {key[:size]}") == "no such key: [redacted]"
    assert Redactor([key]).text("a vendor") == "a vendor"


def test_priority_never_exceeds_the_keys() -> None:
    client = Client("a", Key(sha256="", max_priority="normal"))
    assert client.priority(Priority.HIGH) is Priority.NORMAL
    assert client.priority(Priority.LOW) is Priority.LOW
    assert Client(None, None).priority(Priority.HIGH) is Priority.HIGH


def test_a_reload_keeps_the_counters_of_keys_that_stay() -> None:
    old = KeyRing({"a": Key(sha256=digest("a"), budget_usd_per_day=1.0)})
    old.identify({"x-api-key": "a"}).charge(5.0, 100.0)
    new = KeyRing({"a": Key(sha256=digest("a"), budget_usd_per_day=9.0)}, old)
    assert new.identify({"x-api-key": "a"}).spent_today(100.0) == 5.0
    rotated = KeyRing({"a": Key(sha256=digest("b"))}, old)
    with pytest.raises(RequestError):
        rotated.identify({"x-api-key": "a"})


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "sk-ant-api03-AAAAAAAAAAAAAAAA",
        "AIzaSyA1234567890abcdefghijklmnop",
        "Bearer abcdefgh.ijkl",
        'x-api-key: "verysecret"',
        "https://h/v1?key=verysecret&alt=sse",
        '{"api_key": "verysecret"}',
        "Authorization: verysecret",
        "kn0wn",
    ],
)
def test_secrets_are_taken_out(secret: str) -> None:
    redacted = Redactor(["kn0wn"]).text(f"before {secret} after")
    for value in ("abcdefgh", "AAAAAAAA", "1234567890", "verysecret", "kn0wn"):
        assert value not in redacted
    assert redacted.startswith("before") and "[redacted]" in redacted


def test_plain_sentences_stay() -> None:
    sentence = "The key to a good answer is 42; tokens: 12, model gpt-4o-mini, sk- is a prefix."
    assert Redactor().text(sentence) == sentence


def test_logs_and_tracebacks_are_redacted() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Redactor(["topsecret"]))
    logger = logging.Logger("t")
    logger.addHandler(handler)
    try:
        raise ValueError("with topsecret")
    except ValueError:
        logger.exception("failed for %s", "topsecret")
    assert "topsecret" not in stream.getvalue() and "ValueError" in stream.getvalue()


@given(st.integers(1, 200))
def test_depth(depth: int) -> None:
    body = b'{"[[[{{{": ' * depth + b'"]}\\"]"' + b"}" * depth
    if depth <= 64:
        check_depth(body, 64)
    else:
        with pytest.raises(RequestError, match="deeper than 64"):
            check_depth(body, 64)


def test_depth_of_a_huge_body_is_cheap() -> None:
    body = b"[" + b'{"a": "b[{"}, ' * 500_000 + b'"x"]'
    started = time.process_time()
    check_depth(body, 64)
    with pytest.raises(RequestError):
        check_depth(b"[" * 5_000_000, 64)
    assert time.process_time() - started < 3.0


def test_a_bearer_key_behind_its_header_s_name_is_hidden_whole() -> None:
    hidden = Redactor([]).text("authorization: Bearer client-key-1-secret")
    assert "client-key-1-secret" not in hidden
