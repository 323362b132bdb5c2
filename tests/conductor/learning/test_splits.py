"""Splits: disjoint, covering, stable under reordering, and twins never on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.conductor.learning.splits import (
    folds,
    hold_out_groups,
    hold_out_newest,
    newer_than,
    sample_prompts,
    split_prompts,
)
from onebeat.engine.errors import InputError

PROMPTS = [f"prompt number {i}" for i in range(200)]
GROUPS = ["x" if i % 4 else "y" for i in range(200)]


@given(st.integers(0, 50), st.permutations(range(200)))
def test_a_prompts_side_depends_on_its_hash_alone(seed: int, order: list[int]) -> None:
    split = split_prompts(PROMPTS, GROUPS, seed=seed)
    shuffled = split_prompts([PROMPTS[i] for i in order], [GROUPS[i] for i in order], seed=seed)
    assert {PROMPTS[i] for i in split.test} == {PROMPTS[order[i]] for i in shuffled.test}
    assert sorted([*split.fit, *split.test]) == list(range(200))


def test_every_source_gives_its_share_and_twins_stay_together() -> None:
    prompts = [*PROMPTS, *(f"  PROMPT  number {i}" for i in range(200))]
    split = split_prompts(prompts, GROUPS * 2, test_share=0.3, seed=1)
    held = set(split.test.tolist())
    assert all((i in held) == (i + 200 in held) for i in range(200))
    assert sum(GROUPS[i % 200] == "y" for i in held) == 2 * 15
    assert "seed 1" in split.name


@given(st.integers(0, 50), st.permutations(range(200)))
def test_a_sample_depends_on_the_prompts_alone_and_takes_of_every_source(seed: int, order: list[int]) -> None:
    rows = sample_prompts(PROMPTS, GROUPS, 100, seed=seed)
    shuffled = sample_prompts([PROMPTS[i] for i in order], [GROUPS[i] for i in order], 100, seed=seed)
    assert {PROMPTS[i] for i in rows} == {PROMPTS[order[i]] for i in shuffled}
    assert rows.tolist() == sorted(rows.tolist()) and len(rows) == 100
    assert sum(GROUPS[i] == "y" for i in rows) == 25
    assert sample_prompts(PROMPTS, GROUPS, 200, seed=seed).tolist() == list(range(200))
    assert len(sample_prompts(PROMPTS, [str(i) for i in range(200)], 50)) == 200  # Nobody's only prompt is left out.


def test_a_sample_takes_from_both_sides_of_a_split_and_moves_nobody() -> None:
    split = split_prompts(PROMPTS, GROUPS, seed=3)
    rows = sample_prompts(PROMPTS, GROUPS, 100, seed=3)
    inside = split.within(rows)
    assert {int(rows[i]) for i in inside.test} == set(split.test.tolist()) & set(rows.tolist())
    assert sorted([*inside.fit, *inside.test]) == list(range(len(rows)))
    assert 15 < len(inside.test) < 45  # 30 of 100: drawn by another hash than the sides.


def test_folds_cover_once_and_whole_groups_stay_whole() -> None:
    parts = folds(PROMPTS, GROUPS, 5)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert {len(part) for part in parts} == {40}
    subjects = [f"subject {i % 7}" for i in range(200)]
    for part in folds(PROMPTS, subjects, 3, whole_groups=True):
        inside = {subjects[i] for i in part}
        assert all(i in part for i in range(200) if subjects[i] in inside)


def test_the_newest_are_held_out() -> None:
    time_s = np.array([5.0, np.nan, 9.0, 7.0, 1.0])
    split = hold_out_newest(time_s, 0.4)
    assert split.test.tolist() == [2, 3]
    assert split.fit.tolist() == [0, 1, 4]
    with pytest.raises(InputError, match="1 have a time"):
        hold_out_newest(np.array([1.0, np.nan, np.nan, np.nan]), 0.5)


def test_the_newest_fitted_prompt_is_the_line() -> None:
    split = newer_than(np.array([5.0, np.nan, 9.0, 7.0, 1.0]), 5.0)
    assert split.test.tolist() == [2, 3]
    assert split.fit.tolist() == [0, 1, 4]
    assert "newer than 1970-01-01T00:00:05+00:00" in split.name


def test_holding_out_sources() -> None:
    split = hold_out_groups(GROUPS, ["y"])
    assert {GROUPS[i] for i in split.test} == {"y"}
    with pytest.raises(InputError, match=r"'z'.*x, y"):
        hold_out_groups(GROUPS, ["z"])
    with pytest.raises(InputError, match="nothing to fit on"):
        hold_out_groups(GROUPS, ["x", "y"])
    with pytest.raises(InputError, match=r"1\.5"):
        split_prompts(PROMPTS, GROUPS, test_share=1.5)
