"""What is passed to `Router`, to the live router or to `serve()` is taken, or refused in one sentence that names it."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onebeat import Decision, Router
from onebeat.engine.arguments import check_deadline, number, whole
from onebeat.engine.errors import ConfigError, DeadlineError, InputError, OnebeatError
from onebeat.engine.options import EngineOptions
from onebeat.engine.plan import Order
from tests.engine.tiny_routers import tiny_router

NAN = math.nan


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    return Router.from_pretrained(tiny_router(tmp_path_factory.mktemp("router")))


DIALS: list[tuple[dict[str, Any], str]] = [
    ({"tradeoff": NAN}, "tradeoff is nan; it runs from 0"),
    ({"tradeoff": True}, "tradeoff is True; it runs from 0"),
    ({"tradeoff": "0.5"}, 'tradeoff is "0.5"; it runs from 0'),
    ({"tradeoff": -0.1}, "tradeoff is -0.1; it runs from 0"),
    ({"tradeoff": 10**5000}, "tradeoff is a whole number of thousands of digits; it runs from 0"),
    ({"min_quality": NAN}, "min_quality is nan; predicted quality runs from 0 to 1"),
    ({"min_quality": False}, "min_quality is False; predicted"),
    ({"min_quality": [0.5]}, r"min_quality is \[0.5\]; predicted"),
    ({"max_cost_usd": NAN}, "max_cost_usd is nan; it must be zero or more dollars"),
    ({"max_cost_usd": -1}, "max_cost_usd is -1; it must be zero or more dollars"),
    ({"max_cost_usd": "free"}, 'max_cost_usd is "free"; it must'),
    ({"max_cost_usd": 10**400}, "max_cost_usd is 10+... .401 characters.; it must"),
    ({"models": "small"}, r'models is "small"; it must be a list of columns, such as \["large","middle"\]'),
    ({"models": 3}, "models is 3; it must be a list of columns"),
    ({"models": ["smal"]}, "models names \"smal\", which this router does not score; the nearest known one is 'small'"),
    ({"models": ["small", None]}, "models names null, which this router does not score; known are large, middle"),
]


@pytest.mark.parametrize(("dials", "expected"), DIALS)
def test_the_router_and_the_live_router_refuse_the_same_dials_before_computing(
    router: Router, dials: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("the prompt was computed before its arguments were looked at")

    with pytest.raises(InputError, match=expected):
        router.decide(router.score(["hello"]), **dials)

    async def live() -> None:
        async with router.serve() as serving:
            with pytest.raises(InputError, match=expected):
                await serving.route("hello", **dials)
            assert serving.snapshot().accepted == 0

    asyncio.run(live())
    monkeypatch.setattr(type(router.runner), "features", computed)
    with pytest.raises(InputError, match=expected):
        router.route("hello", **dials)


PROMPTS: list[tuple[Any, str]] = [
    (None, "a prompt is null; give a string or a list"),
    (b"hello", "a prompt is b'hello'; give a string or a list"),
    ([], "a prompt is .*; give a string or a list of at least one message"),
    (17, "a prompt is 17; give a string or a list"),
    (["hello"], 'message 0 is "hello"; it must be'),
    ([{"content": "hello"}], 'message 0 is {"content":"hello"}; it must be'),
    ([{"role": 3, "content": "hello"}], "message 0 is .*; it must be"),
    ([{"role": "user", "content": 10**400}], "the content of message 0 is 10+... .401 characters.; it must be text"),
    ([{"role": "user", "content": {"text": "hello"}}], "the content of message 0 is .*; it must be text or a list"),
    ([{"role": "user", "content": [3]}], "a part of message 0 is 3; it must be"),
    ([{"role": "user"}], "the prompt is empty"),
    ("", r"the prompt is empty \(0 characters\)"),
    ("\ud800", r"half a surrogate pair \(U\+D800"),
]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS)
def test_the_router_and_the_live_router_refuse_the_same_prompts(router: Router, prompt: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        router.route(prompt)

    async def live() -> None:
        async with router.serve() as serving:
            bad, good = await asyncio.gather(serving.route(prompt), serving.route("hello"), return_exceptions=True)
            assert isinstance(good, Decision), "another caller was touched"
            raise bad if isinstance(bad, BaseException) else AssertionError(f"{prompt!r} was taken")

    with pytest.raises(InputError, match=expected):
        asyncio.run(live())


async def test_what_a_live_caller_asks_for_is_checked(router: Router) -> None:
    wrong: list[tuple[dict[str, Any], type[OnebeatError], str]] = [
        ({"deadline_ms": NAN}, InputError, "deadline_ms is nan; it must be a number of milliseconds from now, or None"),
        ({"deadline_ms": "50"}, InputError, 'deadline_ms is "50"; it must be a number'),
        ({"deadline_ms": True}, InputError, "deadline_ms is True; it must be a number"),
        ({"deadline_ms": 0}, DeadlineError, "the deadline lies 0 ms in the past; give one that lies ahead"),
        ({"deadline_ms": -3}, DeadlineError, "the deadline lies 3 ms in the past; give one that lies ahead"),
        ({"deadline_ms": -math.inf}, DeadlineError, "the deadline lies inf ms in the past"),
        ({"features": "yes"}, InputError, 'features is "yes"; it must be True or False'),
    ]
    async with router.serve() as live:
        for arguments, error, expected in wrong:
            with pytest.raises(error, match=expected):
                await live.score("hello", **arguments)
        assert live.snapshot().accepted == 0
        for deadline_ms in (None, math.inf, 1e300, 60_000, np.float32(60_000), Fraction(120_001, 2)):
            assert (await live.score("hello", deadline_ms=deadline_ms)).quality.shape == (1, 4)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"queue_promts": 3}, r"serve\(\) has no option 'queue_promts'; the nearest known one is 'queue_prompts'"),
    ({"queue_prompts": 0}, "queue_prompts is 0; it must be a whole number of 1 to 10000000"),
    ({"queue_prompts": 2.5}, "queue_prompts is 2.5; it must be a whole number"),
    ({"queue_prompts": None}, "queue_prompts is null; it must be a whole number"),
    ({"queue_prompts": True}, "queue_prompts is True; it must be a whole number"),
    ({"queue_prompts": 10**20}, "queue_prompts is 100000000000000000000; it must be"),
    ({"tokenizer_threads": 100_000}, "tokenizer_threads is 100000; it must be a whole number of 1 to 256"),
    ({"step_tokens": "512"}, 'step_tokens is "512"; it must be a whole number'),
    ({"step_sequences": -1}, "step_sequences is -1; it must be"),
    ({"working_prompts": NAN}, "working_prompts is nan; it must be a whole number"),
    ({"prefix_cache_mebibytes": NAN}, "prefix_cache_mebibytes is nan; it must be a number of 0 to"),
    ({"prefix_cache_mebibytes": 1e12}, "prefix_cache_mebibytes is 1000000000000.0; it must be a number of 0 to"),
    ({"credit_tokens_per_s": -1}, "credit_tokens_per_s is -1; it must be a number of 0"),
    ({"grace_s": math.inf}, "grace_s is inf; it must be a number of 0 to 86400"),
    ({"grace_s": "5"}, 'grace_s is "5"; it must be'),
    ({"wait_until_ready": "no"}, 'wait_until_ready is "no"; it must be True or False'),
    ({"wait_until_ready": 1}, "wait_until_ready is 1; it must be True or False"),
    ({"order": "shortest"}, 'order is "shortest"; it must be one of Order.SHORTEST, Order.ARRIVAL'),
    ({"progress": "bar"}, 'progress is "bar"; it must be a function'),
    ({"light_step_tokens": 63}, "light_step_tokens is 63 and step_tokens 512"),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_an_option_of_serve_that_means_nothing_is_refused(
    router: Router, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as refusal:
        router.serve(**options)
    assert "\n" not in str(refusal.value)


def test_numbers_of_numpy_are_numbers() -> None:
    options = EngineOptions.of({"queue_prompts": np.int64(3), "grace_s": np.float32(0.5), "order": Order.ARRIVAL})
    assert options.queue_prompts == 3 and type(options.queue_prompts) is int
    assert options.grace_s == 0.5 and type(options.grace_s) is float
    assert whole("n", np.uint8(7), least=1, largest=9) == 7
    assert number("x", Fraction(1, 4), "no", least=0) == 0.25
    with pytest.raises(InputError):
        number("x", np.bool_(True), "no", least=0)
    assert check_deadline(math.inf) is None


LOADING: list[tuple[dict[str, Any], str]] = [
    ({"source": None}, 'the router is null; give a router\'s folder, "default", or hf:org/name'),
    ({"source": 3}, "the router is 3; give"),
    ({"source": b"default"}, "the router is b'default'; give"),
    ({"source": "  "}, 'the router is "  "; give'),
    ({"precision": ["int8"]}, r'precision is \["int8"\]; the nearest'),
    ({"precision": None}, "precision is null; known are"),
    ({"device": None}, 'device is null; it must be "auto", "cpu"'),
    ({"device": 0}, 'device is 0; it must be "auto", "cpu"'),
    ({"device": "cpu:7"}, 'device is "cpu:7"; it must be "auto", "cpu"'),
    ({"device": ""}, 'device is ""; it must be'),
    ({"revision": 3}, "revision is 3; write a branch"),
    ({"cache_dir": 3}, "cache_dir is 3; give the path of a folder"),
]


@pytest.mark.parametrize(("changes", "expected"), LOADING)
def test_an_argument_of_from_pretrained_that_means_nothing_is_refused(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        Router.from_pretrained(**({"source": tmp_path} | changes))


def test_what_is_decided_must_be_scores_of_this_router(router: Router, tmp_path: Path) -> None:
    scores = router.score(["hello", "there"])
    for row in (2, -1, 1.0, None, True):
        with pytest.raises(InputError, match=r"row is .*; it must be a whole number of 0 to 1"):
            router.decide(scores, row)  # type: ignore[arg-type]
    for prompts in (None, 3, (text for text in ["hello"]), {"role": "user", "content": "hello"}):
        with pytest.raises(InputError, match=r"score takes a list of prompts and was given .*; put it in a list"):
            router.score(prompts)  # type: ignore[arg-type]


async def test_a_live_decision_says_that_its_counts_are_estimates(router: Router) -> None:
    """As `Router.route` says it: a prompt of megabytes is tokenised at both ends only."""
    huge = "word " * 100_000
    here = router.route(huge)
    async with router.serve() as live:
        there = await live.route(huge)
        short = await live.route("hello")
        assert (await live.score(huge)).estimated == (True,)
    assert here.estimated and there.estimated and not short.estimated
    assert there.reason == here.reason and f"of about {here.prompt_tokens} tokens" in there.reason
