"""The engine over a pretend model: everything that goes wrong touches only its own caller, and nobody waits forever."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager

import numpy as np
import pytest

from onebeat.engine.engine import Engine
from onebeat.engine.errors import CheckpointError, DeadlineError, EngineError, InputError, OverloadedError, StoppedError
from onebeat.engine.mailbox import Mailbox
from onebeat.engine.parts import Array
from onebeat.engine.records import Scores
from tests.engine.fake_model import CHUNK_TOKENS, FakeModel, Prepared, engine_of, prepare

SOON_S = 5.0


@contextmanager
def running(model: FakeModel, **changes: object) -> Iterator[Engine]:
    engine = engine_of(model, **changes)  # type: ignore[arg-type]
    engine.start()
    engine.wait_until_ready(SOON_S)
    try:
        yield engine
    finally:
        for gate in (model.gate, model.warm_gate):
            if gate is not None:
                gate.set()
        engine.stop(SOON_S)
        assert engine.snapshot().waiting_prompts == 0


def value(future: Future[Scores]) -> float:
    return float(future.result(SOON_S).output_tokens[0, 0]) - 1.0


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < give_up, "what was waited for did not happen"
        time.sleep(0.001)


def test_each_caller_gets_its_own_scores_whatever_the_company() -> None:
    prompts = [
        " ".join(str(n) for n in range(start, start + length)) for start in (1, 50) for length in range(1, 60, 3)
    ]
    with running(FakeModel()) as engine:
        futures = [engine.submit(prompt) for prompt in prompts]
        for prompt, future in zip(prompts, futures, strict=True):
            ids = [int(word) for word in prompt.split()]
            assert value(future) == sum(ids)
            scores = future.result()
            assert scores.models == ("only",) and scores.quality.shape == (1, 1)
            assert scores.prompt_tokens.tolist() == [len(ids)] and scores.cut_tokens.tolist() == [0]
            timing = scores.timing[0]
            assert timing.computed_tokens + timing.cached_tokens == len(ids)
            parts = timing.tokenize_ms + timing.queued_ms + timing.compute_ms
            assert timing.total_ms == pytest.approx(parts, abs=1.0) and timing.total_ms > 0
        snapshot = engine.snapshot()
    assert snapshot.answered == snapshot.accepted == len(prompts)
    assert snapshot.step_tokens.count == snapshot.steps and snapshot.step_tokens.total == snapshot.computed_tokens
    assert snapshot.total_ms.count == len(prompts)


def test_features_come_only_when_asked_for() -> None:
    with running(FakeModel()) as engine:
        assert engine.submit("1 2").result(SOON_S).features is None
        features = engine.submit("1 2", features=True).result(SOON_S).features
        assert features is not None and features.tolist() == [[3.0]]


def test_a_common_beginning_is_computed_once() -> None:
    stem = " ".join(str(n) for n in range(10, 10 + 2 * CHUNK_TOKENS))
    model = FakeModel()
    with running(model) as engine:
        assert value(engine.submit(f"{stem} 3")) == value(engine.submit(f"{stem} 4")) - 1
        assert engine.submit(f"{stem} 5").result(SOON_S).timing[0].cached_tokens == 2 * CHUNK_TOKENS
        assert engine.snapshot().cached_tokens == 4 * CHUNK_TOKENS
    assert model.computed.count(10) == 1


def test_a_thousand_callers_and_a_queue_of_a_hundred() -> None:
    model = FakeModel(gate=threading.Event())
    with running(model, queue_prompts=100) as engine:
        accepted, refused_s = [], []
        for _ in range(1000):
            began = time.perf_counter()
            try:
                accepted.append(engine.submit("1 2 3"))
            except OverloadedError as error:
                refused_s.append(time.perf_counter() - began)
                assert "100 prompts of at most 100" in str(error)
        assert len(accepted) == 100 and len(refused_s) == 900
        assert sorted(refused_s)[890] < 0.01, "an overloaded engine answers at once"
        assert model.gate is not None
        model.gate.set()
        assert [value(future) for future in accepted] == [6.0] * 100
        assert engine.snapshot().overloaded == 900
        assert value(engine.submit("7")) == 7.0


@pytest.mark.parametrize(("prompt", "says"), [("1 " * 201, "201 tokens to compute; .* 1 to 200"), ("", "0")])
def test_a_prompt_outside_the_model_s_reach_fails_alone(prompt: str, says: str) -> None:
    with running(FakeModel()) as engine:
        good, bad = engine.submit("1"), engine.submit(prompt)
        with pytest.raises(InputError, match=says):
            bad.result(SOON_S)
        assert value(good) == 1.0 and engine.healthy


def test_an_exception_in_one_prompt_s_preparation_touches_only_its_caller() -> None:
    with running(FakeModel()) as engine:
        futures = [engine.submit(prompt) for prompt in ("1 2", "not numbers", "3")]
        with pytest.raises(ValueError, match="invalid literal"):
            futures[1].result(SOON_S)
        assert [value(futures[0]), value(futures[2])] == [3.0, 3.0]
        assert engine.healthy and engine.snapshot().failed == 1


class Panic(BaseException):
    """As the tokenizer's Rust panics: no `Exception`."""


@pytest.mark.parametrize("error", [Panic("index out of bounds"), StopIteration(), KeyboardInterrupt()])
def test_whatever_preparation_raises_is_told_to_its_caller_and_the_tokenizer_s_thread_lives_on(
    error: BaseException,
) -> None:
    def broken(prompt: object) -> Prepared:
        if prompt == "bad":
            raise error
        return prepare(prompt)

    async def on_a_loop(engine: Engine) -> None:
        mailbox: Mailbox[Scores] = Mailbox(asyncio.get_running_loop())
        waiters = [mailbox.expect(engine.submit(prompt)) for prompt in ("bad", "3", "bad", "4")]
        done = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), SOON_S)
        assert [type(outcome) for outcome in done] == [InputError, Scores] * 2

    with running(FakeModel(), prepare=broken, tokenizer_threads=1) as engine:
        with pytest.raises(InputError, match=rf"could not be prepared \({type(error).__name__}"):
            engine.submit("bad").result(SOON_S)
        asyncio.run(on_a_loop(engine))
        assert engine.healthy and engine.snapshot().failed == 3


def test_scores_that_are_no_numbers_fail_alone() -> None:
    def score(features: Array) -> tuple[Array, Array]:
        return np.where(features == 13.0, np.nan, features), features + 1.0

    model = FakeModel(gate=threading.Event())
    with running(model, score=score) as engine:
        bad, good = engine.submit("6 7"), engine.submit("1 1")
        model.gate.set()  # type: ignore[union-attr]
        with pytest.raises(CheckpointError, match="weights overflow"):
            bad.result(SOON_S)
        assert value(good) == 2.0 and engine.healthy


def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    with running(FakeModel()) as engine:
        for deadline_ms in (0, -5.0):
            with pytest.raises(DeadlineError, match="in the past"):
                engine.submit("1", deadline_ms=deadline_ms)
        with pytest.raises(InputError, match="deadline_ms is nan"):
            engine.submit("1", deadline_ms=float("nan"))
        assert engine.snapshot().accepted == 0


def test_a_deadline_that_passes_or_cannot_be_met_is_told_and_not_computed() -> None:
    model = FakeModel(token_ms=1.0, gate=threading.Event())
    with running(model) as engine:
        first = engine.submit("1")
        until(lambda: len(model.steps) == 1)
        passes = engine.submit("50", deadline_ms=30.0)
        doomed = engine.submit(" ".join(["60"] * 190), deadline_ms=120.0)
        fits = engine.submit("70", deadline_ms=60_000.0)
        with pytest.raises(DeadlineError, match="the deadline passed after 3"):
            passes.result(SOON_S)  # Told while the model is still busy.
        assert model.gate is not None
        model.gate.set()
        with pytest.raises(DeadlineError, match="deadline of 120 ms can no longer be met"):
            doomed.result(SOON_S)
        assert value(first) == 1.0 and value(fits) == 70.0
        assert engine.snapshot().deadline_misses == 2
    assert 50 not in model.computed and 60 not in model.computed


def test_a_cancelled_caller_is_not_computed() -> None:
    model = FakeModel(gate=threading.Event())
    with running(model) as engine:
        first = engine.submit("1")
        until(lambda: len(model.steps) == 1)
        gone, stays = engine.submit("50 " * 20), engine.submit("2")
        assert gone.cancel()
        assert model.gate is not None
        model.gate.set()
        assert (value(first), value(stays)) == (1.0, 2.0)
        with pytest.raises(CancelledError):
            gone.result(0)
        assert engine.snapshot().cancelled == 1
    assert 50 not in model.computed


def test_a_crash_fails_everybody_with_the_cause_and_the_engine_comes_back_once() -> None:
    model = FakeModel(break_on=13, gate=threading.Event())
    with running(model) as engine:
        victims = [engine.submit(prompt) for prompt in ("1", "13", "2 " * 30, "3")]
        model.warm_gate = threading.Event()
        model.gate.set()  # type: ignore[union-attr]
        for victim in victims[1:]:
            with pytest.raises(StoppedError, match="crashed") as caught:
                victim.result(SOON_S)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)
        until(lambda: model.made == 2)
        assert not engine.healthy and not engine.ready, "unhealthy until the new model has run"
        waiting = engine.submit("4")
        model.warm_gate.set()
        assert value(waiting) == 4.0
        assert engine.healthy and engine.ready and engine.snapshot().restarts == 1

        last = engine.submit("13")
        with pytest.raises(StoppedError, match="crashed"):
            last.result(SOON_S)
        with pytest.raises(StoppedError, match="not restarted") as refused:
            engine.submit("5")
        assert isinstance(refused.value.__cause__, ZeroDivisionError)
        assert not engine.healthy and not engine.ready and model.made == 2


def test_nothing_of_a_crashed_model_s_cache_is_used_again() -> None:
    stem = " ".join(["9"] * CHUNK_TOKENS)
    model = FakeModel(break_on=13)
    with running(model) as engine:
        assert value(engine.submit(f"{stem} 1")) == 9 * CHUNK_TOKENS + 1
        with pytest.raises(StoppedError):
            engine.submit("13").result(SOON_S)
        model.memory.clear()
        assert engine.submit(f"{stem} 2").result(SOON_S).timing[0].cached_tokens == 0


def test_a_model_that_cannot_be_made_says_so() -> None:
    engine = engine_of(FakeModel(failures=[RuntimeError("first"), RuntimeError("second")]))
    early = engine.submit("1")
    engine.start()
    with pytest.raises(StoppedError, match="could not be warmed up") as caught:
        engine.wait_until_ready(SOON_S)
    assert str(caught.value.__cause__) == "second"
    with pytest.raises(StoppedError):
        early.result(SOON_S)
    engine.stop(0.0)


def test_ready_only_after_the_warm_up_whose_progress_is_reported() -> None:
    model, seen = FakeModel(warm_gate=threading.Event()), []
    engine = engine_of(model, report=lambda done, total, what: seen.append((done, total, what)))
    engine.start()
    early = engine.submit("8")
    with pytest.raises(StoppedError, match="did not finish warming up"):
        engine.wait_until_ready(0.01)
    assert not engine.ready and not early.done()
    model.warm_gate.set()  # type: ignore[union-attr]
    engine.wait_until_ready(SOON_S)
    assert engine.ready and engine.healthy and value(early) == 8.0
    assert seen == [(0, 1, "pretending"), (1, 1, "ready")]
    engine.stop(SOON_S)


def test_stopping_takes_no_more_and_finishes_what_it_took() -> None:
    model = FakeModel(step_ms=2.0)
    engine = engine_of(model)
    engine.start()
    futures = [engine.submit("1 2 3") for _ in range(40)]
    engine.stop(SOON_S)
    assert [value(future) for future in futures] == [6.0] * 40
    with pytest.raises(StoppedError, match="takes no more"):
        engine.submit("1")
    assert not engine.ready


def test_after_the_grace_nobody_is_left_waiting_even_behind_a_step_that_hangs() -> None:
    model = FakeModel(gate=threading.Event())
    engine = engine_of(model)
    engine.start()
    futures = [engine.submit(" ".join(["1"] * 20)) for _ in range(5)]
    until(lambda: len(model.steps) == 1)
    stopper = threading.Thread(target=engine.stop, args=(0.05,))
    stopper.start()
    for future in futures:
        with pytest.raises(StoppedError, match=r"grace of 0\.05 s"):
            future.result(SOON_S)
    model.gate.set()  # type: ignore[union-attr]
    stopper.join(SOON_S)
    assert not stopper.is_alive() and len(model.steps) == 1


def test_the_next_step_is_launched_before_an_asynchronous_one_s_result_is_read() -> None:
    model = FakeModel(asynchronous=True, gate=threading.Event())
    with running(model) as engine:
        futures = [engine.submit(" ".join([str(n)] * CHUNK_TOKENS)) for n in (1, 2, 3)]
        until(lambda: engine.snapshot().waiting_tokens >= CHUNK_TOKENS)
        model.gate.set()  # type: ignore[union-attr]
        assert sorted(value(future) for future in futures) == [8.0, 16.0, 24.0]
        assert value(engine.submit("5")) == 5.0
    assert model.log[:5] == ["launch 1", "wait 1", "launch 2", "read 1", "wait 2"]


def test_any_storm_of_callers_ends_every_one_of_them_exactly_once() -> None:
    model = FakeModel(token_ms=0.01, break_on=13)
    endings: dict[str, int] = {}
    lock = threading.Lock()

    def ended(how: str) -> None:
        with lock:
            endings[how] = endings.get(how, 0) + 1

    def storm(seed: int, engine: Engine) -> None:
        dice = random.Random(seed)
        for turn in range(150):
            length = dice.choice([1, 3, 8, 40, 120])
            is_poison = (seed, turn) == (0, 100)
            prompt = "13" if is_poison else " ".join(str(dice.randint(1, 2)) for _ in range(length))
            deadline_ms = None if is_poison else dice.choice([None, None, None, 0.5, 20.0])
            try:
                future = engine.submit(prompt, deadline_ms=deadline_ms)
            except EngineError as error:
                ended(type(error).__name__)
                continue
            if not is_poison and dice.random() < 0.2 and future.cancel():
                ended("cancelled")
                continue
            try:
                future.result(0.0 if dice.random() < 0.5 else SOON_S)
                ended("answered")
            except FutureTimeout:
                future.add_done_callback(lambda f: ended("answered" if not f.exception() else "later error"))
            except EngineError as error:
                ended(type(error).__name__)

    with running(model, queue_prompts=50) as engine:
        threads = [threading.Thread(target=storm, args=(seed, engine)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        until(lambda: engine.snapshot().waiting_prompts == 0)
        snapshot = engine.snapshot()
    assert sum(endings.values()) == 6 * 150
    assert snapshot.restarts == 1
    inside = snapshot.answered + snapshot.failed + snapshot.cancelled + snapshot.deadline_misses
    assert inside == snapshot.accepted == 6 * 150 - endings.get("OverloadedError", 0)
