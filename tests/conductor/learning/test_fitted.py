"""Which prompts a head was fitted on: known to the prompt, whatever becomes of router.json on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebeat.conductor.learning.artifact import DESCRIPTION, TENSORS, read_head
from onebeat.conductor.learning.fitted import FIELD, fitted_among, hashes
from onebeat.engine.errors import FormatError


def test_prompts_and_their_twins_are_known_and_strangers_are_not() -> None:
    messages = [{"role": "user", "content": "hello"}]
    fitted = {FIELD: hashes(["One  prompt", messages])}
    found = fitted_among(fitted, ["one prompt", "another", messages, [{"role": "system", "content": "hello"}]])
    assert found is not None and found.tolist() == [True, False, True, False]
    assert fitted_among({FIELD: ""}, ["one prompt"]).tolist() == [False]
    assert fitted_among({}, ["one prompt"]) is None


def test_hashes_are_a_set_whatever_the_order_and_can_be_added_to() -> None:
    texts = [f"prompt {number}" for number in range(50)]
    assert hashes(texts) == hashes([*texts[::-1], texts[3]])
    grown = hashes(texts[30:], hashes(texts[:40]))
    assert grown == hashes(texts) and len(grown) == 4 * -(-50 * 8 // 3)


@pytest.mark.parametrize("text", ["not base64!", "YWJj", 7, None])
def test_what_is_no_list_of_hashes_is_told(text: object) -> None:
    with pytest.raises(FormatError, match=r"prompt_hashes of router.json cannot be read .*; fit the router again"):
        fitted_among({FIELD: text}, ["one"])


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    r"Object missing required field `seed` - at `\$\.split`": lambda fitted: fitted["split"].pop("seed"),
    r"Expected `object \| null`, got `array` - at `\$\.split`": lambda fitted: fitted.update(split=[]),
    r"Expected `int`, got `str` - at `\$\.sample\.most`": lambda fitted: fitted.update(sample={"most": "x"}),
    r"Invalid enum value 'int7' - at `\$\.precision`": lambda fitted: fitted.update(precision="int7"),
    r"Expected `float` < 1\.0 - at `\$\.split\.test_share`": lambda fitted: fitted["split"].update(test_share=2.0),
}


@pytest.mark.parametrize("why", DAMAGED)
def test_how_a_head_was_fitted_is_checked_before_it_is_judged(house: Path, tmp_path: Path, why: str) -> None:
    for name in (DESCRIPTION, TENSORS):
        shutil.copyfile(house / "router" / name, tmp_path / name)
    read_head(tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    DAMAGED[why](description["fitted"])
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(FormatError, match=rf"fitted of .*router\.json cannot be read \({why}\); fit the router again"):
        read_head(tmp_path)


def test_a_head_that_broke_off_is_told(house: Path, tmp_path: Path) -> None:
    shutil.copyfile(house / "router" / DESCRIPTION, tmp_path / DESCRIPTION)
    for kept in (0, 4, 1000):
        (tmp_path / TENSORS).write_bytes((house / "router" / TENSORS).read_bytes()[:kept])
        with pytest.raises(FormatError, match=r"router_head\.safetensors is no whole safetensors file"):
            read_head(tmp_path)
