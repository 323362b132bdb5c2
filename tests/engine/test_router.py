"""The Python door: scores, decisions, and the same bits whatever the company."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import onebeat
from onebeat import Decision, Router
from onebeat.engine.errors import CheckpointError, ConfigError, ConstraintError, FetchError, InputError
from tests.engine.tiny_routers import edit_json, edit_tensors, tiny_router

PROMPTS = ["What is 17 * 23?", "日本語", "x" * 700, [{"role": "user", "content": "Hello"}], "a\n\nb"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_router(tmp_path_factory.mktemp("router"), "qwen3")


@pytest.fixture(scope="module")
def router(folder: Path) -> Router:
    return Router.from_pretrained(folder)


def test_scores_have_a_row_per_prompt_and_a_column_per_model(router: Router) -> None:
    scores = router.score(PROMPTS)
    assert scores.models == tuple(column.name for column in router.columns) == ("large", "middle", "small", "tiny")
    assert scores.quality.shape == scores.output_tokens.shape == (5, 4)
    assert scores.quality.dtype == scores.output_tokens.dtype == np.float32
    assert ((scores.quality > 0) & (scores.quality < 1)).all() and (scores.output_tokens > 0).all()
    assert len(set(scores.quality[:, 0].tolist())) == 5, "prompts differ, so their scores do"
    assert scores.prompt_tokens[2] - scores.cut_tokens[2] == router.max_prompt_tokens == 512
    assert scores.cut_tokens[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0]
    assert scores.features is None and scores.estimated == (False,) * 5
    assert all(timing.computed_tokens > 0 and timing.total_ms > 0 for timing in scores.timing)


def test_a_prompt_alone_has_the_bits_it_has_in_company(router: Router) -> None:
    together = router.score(PROMPTS, features=True)
    assert together.features is not None and together.features.shape == (5, 32)
    for row, prompt in enumerate(PROMPTS):
        alone = router.score([prompt], features=True)
        assert np.array_equal(alone.quality[0], together.quality[row])
        assert np.array_equal(alone.output_tokens[0], together.output_tokens[row])
        assert alone.features is not None and np.array_equal(alone.features[0], together.features[row])


def test_threads_share_a_router(router: Router) -> None:
    expected = [router.score([prompt]).quality for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: router.score([prompt]).quality, PROMPTS * 3))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 3, strict=True))


def test_precisions_agree(folder: Path, router: Router) -> None:
    exact = Router.from_pretrained(folder, precision="float32").score(PROMPTS).quality
    assert np.abs(router.score(PROMPTS).quality - exact).max() < 0.02
    assert np.abs(Router.from_pretrained(folder, precision="bfloat16").score(PROMPTS).quality - exact).max() < 0.02


def test_no_prompts_are_no_rows(router: Router) -> None:
    assert router.score([]).quality.shape == (0, 4)


def test_a_decision_prices_every_model_and_explains_itself(router: Router) -> None:
    decision = router.route("What is 17 * 23?", tradeoff=0.7)
    assert isinstance(decision, Decision) and isinstance(decision, onebeat.Decision)
    assert {candidate.model for candidate in decision.scores} == {"large", "middle", "small", "tiny"}
    prices = {column.name: column for column in router.columns}
    for candidate in decision.scores:
        column = prices[candidate.model]
        dollars = decision.prompt_tokens * column.input_usd_per_million
        dollars += candidate.output_tokens * column.output_usd_per_million
        assert candidate.cost_usd == pytest.approx(dollars / 1e6)
    assert decision.model == decision.scores[0].model
    assert decision.reason.startswith(f"{decision.model} wins at tradeoff 0.7: quality ")
    assert decision.timing.compute_ms > 0


def test_constraints_and_choices_are_kept(router: Router) -> None:
    assert router.route("hi", models=["small"]).model == "small"
    scores = router.score(["hi"])
    best = scores.models[int(scores.quality[0].argmax())]
    assert router.route("hi", tradeoff=1.0).model == best
    assert router.route("hi", tradeoff=0.0, min_quality=float(scores.quality[0].max()) - 1e-6).model == best
    with pytest.raises(ConstraintError, match="max_cost_usd 0 failed: the cheapest is tiny"):
        router.route("hi", max_cost_usd=0.0)
    with pytest.raises(InputError, match=r"models names \"smal\".*nearest known one is 'small'"):
        router.route("hi", models=["smal"])
    with pytest.raises(ConstraintError, match="no model is left"):
        router.route("hi", models=[])


def test_a_cut_is_part_of_the_explanation(router: Router) -> None:
    assert "It read 512 of 719 tokens: the middle was left out." in router.route("x" * 700).reason
    huge = router.route("word " * 1_000_000)
    assert huge.estimated and f"It read 512 of about {huge.prompt_tokens} tokens" in huge.reason
    assert huge.prompt_tokens == pytest.approx(5_000_000, rel=0.02)


def test_one_prompt_where_a_list_belongs_is_refused(router: Router) -> None:
    with pytest.raises(InputError, match="put it in a list"):
        router.score("hello")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="put it in a list"):
        router.score([{"role": "user", "content": "hello"}])  # type: ignore[list-item]
    with pytest.raises(InputError, match="prompt 1 of 2: the prompt is empty"):
        router.score(["hello", ""])


def test_arguments_that_mean_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="precision is \"int4\"; the nearest known one is 'int8'"):
        Router.from_pretrained(folder, precision="int4")  # type: ignore[arg-type]
    for device in ("tpu", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match=f'device is "{device}"'):
            Router.from_pretrained(folder, device=device)
    with pytest.raises(ConfigError, match="is not a folder"):
        Router.from_pretrained(folder / "router.json")


def test_default_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onebeat.engine.default_router.default_router_folder.__defaults__", (tmp_path,))
    with pytest.raises(FetchError, match="run `onebeat pull`"):
        Router.from_pretrained("default")


def test_the_fingerprint_follows_whatever_changes_a_score(folder: Path, tmp_path: Path, router: Router) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert Router.from_pretrained(copy).fingerprint == router.fingerprint
    seen = {router.fingerprint, Router.from_pretrained(copy, precision="float32").fingerprint}
    edit_json(copy / "router.json", lambda found: found.update(max_prompt_tokens=100))
    seen.add(Router.from_pretrained(copy).fingerprint)
    edit_tensors(copy / "router_head.safetensors", lambda tensors: tensors["quality.bias"].add_(0.5))
    seen.add(Router.from_pretrained(copy).fingerprint)
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"].mul_(2))
    seen.add(Router.from_pretrained(copy).fingerprint)
    assert len(seen) == 5


def test_scores_that_are_no_numbers_decide_nothing(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit_tensors(copy / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"].fill_(3e38))
    with pytest.raises(
        CheckpointError, match="computed inf among the hidden states of prompt 0, so its weights overflow"
    ):
        Router.from_pretrained(copy, precision="float32").score(["hello"])
