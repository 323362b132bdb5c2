"""What callers and machines do to an engine: stalls, storms, forks, stops at the wrong moment."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
from concurrent.futures import as_completed, wait

import pytest

from onebeat.engine.engine import LARGE_CHARACTERS, size_of
from onebeat.engine.errors import ConfigError, DeadlineError, InputError, StoppedError
from onebeat.engine.tickets import Ticket
from tests.engine.fake_model import CHUNK_TOKENS, FakeModel, Prepared, engine_of, prepare
from tests.engine.test_engine import SOON_S, running, until, value


def test_a_stall_does_not_make_the_engine_refuse_deadlines_for_good() -> None:
    model = FakeModel(token_ms=1.0, step_ms=1.0)
    with running(model) as engine:
        for _ in range(20):
            engine.submit("1 2 3").result(SOON_S)
        model.step_ms = 700.0
        engine.submit("1 2 3").result(SOON_S)
        model.step_ms = 1.0
        answered = sum(
            not isinstance(engine.submit("1 2 3", deadline_ms=100.0).exception(SOON_S), DeadlineError)
            for _ in range(50)
        )
        assert answered > 25


def test_even_a_warm_up_on_a_stalled_machine_is_forgotten() -> None:
    with running(FakeModel(token_ms=500.0)) as engine:
        engine._parts.make_stepper().token_ms = 0.1  # type: ignore[attr-defined]
        refused = engine.submit("1 2 3", deadline_ms=50.0)
        assert isinstance(refused.exception(SOON_S), DeadlineError)
        answered, give_up = False, time.monotonic() + 20.0
        while not answered and time.monotonic() < give_up:
            answered = engine.submit("1 2 3", deadline_ms=500.0).exception(SOON_S) is None
            time.sleep(0.05)
        assert answered


def test_the_fixed_part_of_a_step_is_not_booked_on_a_long_prompt_s_tokens() -> None:
    with running(FakeModel(step_ms=5.0), keep_blocks=0) as engine:
        for _ in range(60):
            engine.submit("1").result(SOON_S)
        assert value(engine.submit(" ".join(["2"] * 190), deadline_ms=900.0)) == 380.0


def test_a_cancelled_future_is_done_for_those_who_wait_for_several() -> None:
    model = FakeModel(gate=threading.Event())
    with running(model) as engine:
        first = engine.submit("1")
        until(lambda: len(model.steps) == 1)
        gone = engine.submit("2")
        assert gone.cancel()
        done, left = wait([gone], timeout=SOON_S)
        assert done == {gone} and not left
        model.gate.set()  # type: ignore[union-attr]
        assert set(as_completed([first, gone], timeout=SOON_S)) == {first, gone}


def test_a_plain_future_is_told_of_its_deadline_while_the_engine_warms_up() -> None:
    model = FakeModel(warm_gate=threading.Event())
    engine = engine_of(model)
    engine.start()
    try:
        late = [engine.submit("1", deadline_ms=deadline_ms) for deadline_ms in (40.0, 20.0, 60.0)]
        for future in late:
            with pytest.raises(DeadlineError, match="the deadline passed after"):
                future.result(SOON_S)
        assert engine.snapshot().deadline_misses == 3 and engine.snapshot().waiting_prompts == 0
    finally:
        model.warm_gate.set()  # type: ignore[union-attr]
        engine.stop(SOON_S)


def test_a_storm_of_callers_that_leave_holds_no_memory() -> None:
    model = FakeModel(gate=threading.Event())
    with running(model) as engine:
        engine.submit("1")
        until(lambda: len(model.steps) == 1)
        for _ in range(20_000):
            assert engine.submit("7 8 9").cancel()
        until(lambda: engine.snapshot().waiting_prompts == 1)
        gc.collect()
        assert sum(type(thing) is Ticket for thing in gc.get_objects()) < 300
        model.gate.set()  # type: ignore[union-attr]


def test_an_engine_that_was_stopped_while_it_warmed_up_never_says_that_it_is_ready() -> None:
    model = FakeModel(warm_gate=threading.Event())
    engine = engine_of(model)
    engine.start()
    engine.stop(0.0)
    model.warm_gate.set()  # type: ignore[union-attr]
    engine._thread.join(SOON_S)
    assert not engine._thread.is_alive() and not engine.ready and not engine.snapshot().ready
    with pytest.raises(StoppedError, match="was started before"):
        engine.start()


def test_a_crash_while_stopping_restarts_nothing() -> None:
    model = FakeModel(break_on=13, gate=threading.Event())
    engine = engine_of(model)
    engine.start()
    engine.wait_until_ready(SOON_S)
    future = engine.submit("13")
    until(lambda: len(model.steps) == 1)
    stopper = threading.Thread(target=engine.stop, args=(SOON_S,))
    stopper.start()
    until(lambda: not engine.ready)
    began = time.monotonic()
    model.gate.set()  # type: ignore[union-attr]
    stopper.join(SOON_S)
    with pytest.raises(StoppedError, match="crashed"):
        future.result(SOON_S)
    assert model.made == 1 and not engine.ready and not engine.healthy and time.monotonic() - began < SOON_S / 2


@pytest.mark.parametrize("grace_s", [float("nan"), float("inf"), -1.0, "5", None])
def test_a_grace_that_means_nothing_stops_nothing(grace_s: float) -> None:
    with running(FakeModel()) as engine:
        with pytest.raises(ConfigError, match=r"grace_s is .* it must be a number of 0 to 86400 seconds"):
            engine.stop(grace_s)
        assert value(engine.submit("4")) == 4.0


def test_a_future_s_callback_may_stop_the_engine() -> None:
    engine, stopped = engine_of(FakeModel()), threading.Event()
    engine.start()

    def stop(_: object) -> None:
        engine.stop(0.0)
        stopped.set()

    engine.submit("3").add_done_callback(stop)
    assert stopped.wait(SOON_S) and not engine.ready
    until(lambda: not any(thread.is_alive() for thread in (engine._thread, *engine._threads)))


@pytest.mark.parametrize("options", [{"queue_prompts": 0}, {"queue_prompts": True}, {"tokenizer_threads": 0}])
def test_an_engine_of_no_places_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="it must be a whole number of 1 to"):
        engine_of(FakeModel(), **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_told_that_the_threads_stayed_behind() -> None:
    with running(FakeModel()) as engine:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            code = 1
            try:
                engine.submit("1")
            except StoppedError as error:
                code = 0 if "fork" in str(error) and not engine.ready else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert value(engine.submit("6")) == 6.0


def test_counts_go_on_after_a_restart_and_waiting_tokens_count_down() -> None:
    model = FakeModel(break_on=13)
    with running(model, keep_blocks=2) as engine:
        for start in range(20, 120, 20):
            engine.submit(" ".join(str(n) for n in range(start, start + 2 * CHUNK_TOKENS))).result(SOON_S)
        evicted = engine.snapshot().evicted_blocks
        assert evicted > 0
        engine.submit("13").exception(SOON_S)
        engine.wait_until_ready(SOON_S)
        until(lambda: engine.ready)
        assert engine.snapshot().evicted_blocks == evicted
        model.gate = threading.Event()
        future, steps = engine.submit(" ".join(["5"] * 4 * CHUNK_TOKENS)), len(model.steps)
        until(lambda: len(model.steps) > steps)
        assert 0 < engine.snapshot().waiting_tokens < 4 * CHUNK_TOKENS
        model.gate.set()
        assert value(future) == 20.0 * CHUNK_TOKENS and engine.snapshot().waiting_tokens == 0


@pytest.mark.parametrize(
    ("prompt", "size"),
    [
        ("abc", 3),
        ([{"role": "user", "content": "abc"}, {"content": [{"type": "text", "text": "de"}, "x", {"image": 1}]}], 5),
        ([], 0),
        (["abc", None, {"content": 3}], 0),
    ],
)
def test_the_size_of_a_prompt_is_that_of_its_texts(prompt: object, size: int) -> None:
    assert size_of(prompt) == size  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [None, 7.5, {"content": "abc"}])
def test_what_is_no_prompt_fails_its_own_caller_only(prompt: object) -> None:
    with running(FakeModel()) as engine:
        with pytest.raises((ValueError, InputError)):
            engine.submit(prompt).result(SOON_S)  # type: ignore[arg-type]
        assert value(engine.submit("1")) == 1.0


def test_huge_prompts_do_not_hold_up_the_tokenising_of_short_ones() -> None:
    gate, huge = threading.Event(), "1 " * LARGE_CHARACTERS

    def slow_for_huge(prompt: object) -> Prepared:
        if len(str(prompt)) > LARGE_CHARACTERS:
            assert gate.wait(SOON_S)
            raise ValueError("too long")
        return prepare(prompt)

    with running(FakeModel(), prepare=slow_for_huge) as engine:
        held = [engine.submit(huge), engine.submit([{"role": "user", "content": huge}]), engine.submit(huge)]
        assert value(engine.submit("4 5")) == 9.0 and not any(future.done() for future in held)
        gate.set()
        assert all(isinstance(future.exception(SOON_S), ValueError) for future in held)
