"""Whatever is done to a router's files, loading and scoring end in a decision or a sentence, never in a traceback."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from onebeat import OnebeatError, Router
from onebeat.engine.config import FAMILIES, Family
from tests.engine.tiny_routers import tiny_router

DAMAGES = 25
"""Per family: about 50 ms each, most of it for the int8 copy. 15,000 of them were run when this was written."""
FILES = ["router.json", "config.json", "tokenizer_config.json", "tokenizer.json", "router_head.safetensors"]
FILES += ["model.safetensors", "router.json", "config.json"]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3.5,
    1e308,
    1e-300,
    10**20,
    64,
    "",
    "x",
    "mean",
    "last",
    "chat",
    "{prompt}",
    "é",
]
VALUES += [[], {}, [1], {"a": 1}, "\ud800"]


pytestmark = pytest.mark.usefixtures("one_thread")


def damage_json(value: Any, dice: random.Random) -> None:
    """Replaces, removes or adds one thing, at any depth."""
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = dice.choice(keys)
        if not isinstance(place[key], dict | list) or dice.random() < 0.4:
            break
        place = place[key]
    what = dice.random()
    if what < 0.6:
        place[key] = json.loads(json.dumps(dice.choice(VALUES)))
    elif what < 0.8:
        del place[key]
    elif isinstance(place, dict):
        place[f"{key}x"] = dice.choice(VALUES[:5])
    else:
        place.append(dice.choice(VALUES[:5]))


def damage_bytes(content: bytes, dice: random.Random) -> bytes:
    """Flips a few bytes, mostly near the beginning, and sometimes cuts."""
    found = bytearray(content if dice.random() < 0.8 else content[: dice.randrange(len(content))])
    for _ in range(min(len(found), dice.randint(1, 4))):
        found[dice.randrange(len(found) if dice.random() < 0.4 else min(len(found), 3000))] = dice.randrange(256)
    return bytes(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_damage_ends_in_a_decision_or_a_sentence(tmp_path: Path, family: Family) -> None:
    dice = random.Random(family)
    good, decided, refused = tiny_router(tmp_path / "good", family), 0, 0
    for _ in range(DAMAGES):
        folder = shutil.copytree(good, tmp_path / "damaged", dirs_exist_ok=True)
        path = folder / dice.choice(FILES)
        if path.suffix == ".json" and dice.random() < 0.8:
            value = json.loads(path.read_text())
            damage_json(value, dice)
            path.write_text(json.dumps(value))
        else:
            path.write_bytes(damage_bytes(path.read_bytes(), dice))
        try:
            decision = Router.from_pretrained(folder).route("hello <|im_end|> there")
        except OnebeatError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1500
        else:
            decided += 1
            assert 0.0 <= decision.scores[0].quality <= 1.0
    assert decided > 3 and refused > DAMAGES / 3, "most damage matters, some does not"
