"""router.json: what is written is what is read, and every slip is named with the nearest right word."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebeat.engine.errors import FormatError
from onebeat.engine.router_config import RouterConfig, Tap
from tests.engine.test_config import values
from tests.engine.tiny_routers import tiny_config

GOOD: dict[str, Any] = {
    "format_version": 1,
    "name": "mine",
    "taps": [{"layer": 1, "pooling": "mean"}, {"layer": 2, "pooling": "last"}],
    "template": "chat",
    "max_prompt_tokens": 256,
    "columns": [
        {"name": "dear", "input_usd_per_million": 2, "output_usd_per_million": 10, "mean_output_tokens": 1000},
        {"name": "cheap", "input_usd_per_million": 0.1, "output_usd_per_million": 0.5},
    ],
    "head": {"kind": "linear"},
    "calibration": {"columns": {}},
    "fitted": {"on": "something", "auc": 0.8},
}


def test_a_whole_file_is_read() -> None:
    config = RouterConfig.from_json(GOOD)
    assert config.taps == (Tap(1, "mean"), Tap(2, "last")) and config.last_layer == 2
    assert [column.name for column in config.columns] == ["dear", "cheap"]
    assert config.fitted == GOOD["fitted"] and config.calibration == {"columns": {}}


def test_the_reference_cost_is_that_of_the_dearest_column_unless_written() -> None:
    assert RouterConfig.from_json(GOOD).reference_cost_usd == pytest.approx((500 * 2 + 1000 * 10) / 1e6)
    assert RouterConfig.from_json(GOOD | {"dial": {"reference_cost_usd": 0.25}}).reference_cost_usd == 0.25
    free = [{"name": "local", "input_usd_per_million": 0, "output_usd_per_million": 0}]
    assert RouterConfig.from_json(GOOD | {"columns": free}).reference_cost_usd == 1.0


def column(**changes: Any) -> dict[str, Any]:
    return {"columns": [GOOD["columns"][0] | changes]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"format_version": 2}, "is of format version 2 and this onebeat reads up to 1; upgrade onebeat"),
    ({"format_version": "1"}, 'format_version is "1"; it must be 1'),
    ({"format_version": None}, "format_version is null"),
    ({"tapz": []}, "unknown key \"tapz\"; the nearest known one is 'taps'"),
    (
        {"taps": [{"layer": 1, "poolin": "mean"}]},
        "taps[0] has an unknown key \"poolin\"; the nearest known one is 'pooling'",
    ),
    ({"taps": [{"layer": 1}]}, "taps[0] has no 'pooling'"),
    ({"taps": [{"layer": 1, "pooling": "max"}]}, 'taps[0]: pooling is "max"; it must be mean or last'),
    ({"taps": [{"layer": 1.5, "pooling": "mean"}]}, "taps[0]: layer is 1.5"),
    ({"taps": [{"layer": -1, "pooling": "mean"}]}, "taps are at layers [-1]"),
    ({"taps": [{"layer": 2, "pooling": "mean"}, {"layer": 1, "pooling": "mean"}]}, "taps are at layers [2, 1]"),
    ({"taps": []}, "has 0 taps and 2 columns"),
    ({"taps": {}}, "taps is {}; it must be a list"),
    ({"columns": [3]}, "columns[0] is 3; it must be an object"),
    (column(name=" "), "columns are called ' '"),
    ({"columns": GOOD["columns"][:1] * 2}, "2 columns are called 'dear'"),
    (column(input_usd_per_million=-1), "input_usd_per_million of column 'dear' is -1.0; it must be 0 to 1e+06"),
    (column(output_usd_per_million="10"), 'columns[0]: output_usd_per_million is "10"'),
    (column(price=1), 'unknown key "price"'),
    (column(mean_quality=1.5), "mean_quality of column 'dear' is 1.5; it must be 0 to 1"),
    ({"head": {}}, "head has no 'kind'"),
    ({"head": None}, "head is null; it must be an object"),
    ({"head": {"kind": "linear", "token": "first"}}, 'token is "first"; it must be last or penultimate'),
    ({"template": "Say it"}, 'it must be "chat" or hold {prompt} exactly once'),
    ({"template": "{prompt}{prompt}"}, "exactly once"),
    ({"max_prompt_tokens": 3}, "max_prompt_tokens is 3; it must be 16 or more"),
    ({"max_prompt_tokens": True}, "max_prompt_tokens is true"),
    ({"dial": {"reference_cost_usd": 0}}, "dial.reference_cost_usd is 0.0; it must be dollars above 0"),
    (
        {"dial": {"reference": 1}},
        "dial has an unknown key \"reference\"; the nearest known one is 'reference_cost_usd'",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_a_slip_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FormatError) as refusal:
        RouterConfig.from_json(copy.deepcopy(GOOD) | change)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_folder_without_one_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"has no router\.json: .*fit one with `onebeat train`"):
        RouterConfig.load(tmp_path)


def test_taps_and_budget_must_fit_the_backbone() -> None:
    config = RouterConfig.from_json(GOOD)
    config.check_backbone(tiny_config(), "router.json")
    with pytest.raises(FormatError, match="taps layer 2 and the backbone has 1"):
        config.check_backbone(tiny_config(layers=1), "router.json")
    with pytest.raises(FormatError, match="max_prompt_tokens is 256 and the backbone reads 128 positions"):
        config.check_backbone(tiny_config(max_positions=128), "router.json")


@given(st.dictionaries(st.sampled_from([*GOOD, "dial", "drift"]), values, max_size=3))
def test_no_value_anywhere_ends_in_anything_but_a_config_or_a_sentence(changes: dict[str, Any]) -> None:
    try:
        RouterConfig.from_json(json.loads(json.dumps(GOOD | changes)))
    except FormatError as error:
        assert "\n" not in str(error)
