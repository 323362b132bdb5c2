"""fleet.toml: everything wrong is said at once, with its line and the nearest valid name."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebeat.conductor import config
from onebeat.conductor.fleet_file import (
    lines_of_keys,
    load_fleet,
    missing_variables,
    parse_fleet,
    retirements,
    unscored,
)
from onebeat.engine.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "fleet.example.toml"
SMALL = """\
[providers.openai]
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"

[models.big]
provider = "openai"
context_tokens = 1000
input_usd_per_million = 1
output_usd_per_million = 2.5
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_fleet(text)
    return str(caught.value).split("\n")


def test_the_example_is_valid_and_shows_every_key() -> None:
    fleet = load_fleet(EXAMPLE)
    assert {p.kind for p in fleet.providers.values()} == {"openai", "anthropic", "gemini", "openai_compatible"}
    text = EXAMPLE.read_text()
    for section in msgspec.structs.fields(config.Fleet):
        kind = {"providers": config.Provider, "models": config.Model, "keys": config.Key}.get(section.name)
        for field in msgspec.structs.fields(kind or type(section.default)) if section.name != "source" else ():
            assert re.search(rf"^(# )?{field.name} = ", text, re.M), f"{section.name}.{field.name} is not shown"


def test_the_example_shows_the_defaults() -> None:
    fleet, plain = load_fleet(EXAMPLE), config.Fleet()
    for section in ("server", "router", "policy", "context", "resilience", "watch", "contingency", "ledger"):
        assert getattr(fleet, section) == getattr(plain, section), section


def test_a_small_file_gets_defaults() -> None:
    fleet = parse_fleet(SMALL)
    assert fleet.models["big"].input_usd_per_million == 1.0
    assert fleet.router.deadline_ms == 50
    assert missing_variables(fleet, {}) == {"openai": "OPENAI_API_KEY"}
    assert missing_variables(fleet, {"OPENAI_API_KEY": "k"}) == {}


def test_every_error_is_reported_with_line_and_nearest_name() -> None:
    text = SMALL.replace("context_tokens = 1000", "contxt_tokens = 1000").replace("= 2.5", '= "2.5"')
    text = text.replace('kind = "openai"', 'kind = "opnai"') + "\n[serer]\nport = 1\n"
    found = problems(text)
    assert len(found) == 5
    assert found[0].startswith("fleet.toml:2: providers.openai.kind is 'opnai'") and "'openai'?" in found[0]
    assert any(f.startswith("fleet.toml:8: models.big has no key 'contxt_tokens' (did you mean") for f in found)
    assert any(f.startswith("fleet.toml:6: models.big lacks 'context_tokens'") for f in found)
    assert any(f.startswith("fleet.toml:10: models.big.output_usd_per_million is '2.5'") for f in found)
    assert any(f.startswith("fleet.toml:12: [serer] is not a section (did you mean 'server'?)") for f in found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ('\nfallbacks = ["bog"]', r"fallbacks names 'bog', which does not exist \(did you mean 'big'\?\)"),
        ('\nfallbacks = ["big"]', "names itself"),
        ('\nsuccessor = "gone"', "successor names 'gone'"),
        ('\ncapabilities = ["tols"]', r"did you mean 'tools'\?"),
        ("\nprior_quality = 1.5", "prior_quality is 1.5"),
        ("\nmax_output_tokens = 0", "must be above zero"),
        ("\n[policy]\ntradeoff = 1.5", "policy.tradeoff is 1.5; it is a share"),
        ('\n[policy]\ntarget = "soon"', "policy.target is 'soon'; write a share of the best model's quality"),
        ('\n[policy]\ntradeoff = 0.5\ntarget = "95%"', "policy.target is '95%' and policy.tradeoff is given as well"),
        ("\n[resilience]\nconnect_ms = -1", "connect_ms is -1.0; it must be above zero"),
        ("\n[resilience]\nconnect_ms = inf", "connect_ms is inf"),
        ("\n[resilience]\nretry_share = nan", "retry_share is nan"),
        ('\n[server]\nhost = "0.0.0.0"', "anyone could spend"),
        ("\n[server]\nport = 70000", "port is 70000"),
        ('\n[keys.a]\nsha256 = "abc"', "not 64 hexadecimal digits"),
        ('\n[watch]\nempty = "on"', r"watch.empty is 'on'"),
        ("\n[contingency]\nlocal_model = 'bigg'", "did you mean 'big'"),
        ("\nserver = 3", "models.big has no key 'server'"),
    ],
)
def test_mistakes_are_named(change: str, sentence: str) -> None:
    assert re.search(sentence, "\n".join(problems(SMALL.rstrip("\n") + change)))


def test_successors_may_not_go_round() -> None:
    other = SMALL[SMALL.index("[models.big]") :].replace("models.big", "models.small")
    text = SMALL + 'successor = "small"\n' + other + 'successor = "big"\n'
    assert any("successors go round: big -> small -> big" in line for line in problems(text))


@pytest.mark.parametrize("url", ["ftp://x", "api.openai.com", "https://user:pw@x/", "https://", "https://x/?a=1"])
def test_a_base_url_is_checked(url: str) -> None:
    assert "base_url" in problems(SMALL.replace("https://api.openai.com/v1", url))[0]


def test_not_toml_and_not_there(tmp_path: Path) -> None:
    assert "not TOML" in problems("[server")[0]
    with pytest.raises(ConfigError, match=r"does not exist; copy fleet\.example"):
        load_fleet(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_fleet(tmp_path / "binary.toml")


def test_retirements_are_told_a_month_ahead() -> None:
    fleet = parse_fleet(SMALL + "shutdown_date = 2026-06-30\n")
    assert retirements(fleet, datetime.date(2026, 5, 1)) == []
    assert "in 10 days; no successor is named" in retirements(fleet, datetime.date(2026, 6, 20))[0]
    assert "shut down on 2026-06-30" in retirements(fleet, datetime.date(2026, 7, 1))[0]


def test_a_model_that_nothing_scores_is_told() -> None:
    fleet = parse_fleet(SMALL)
    assert unscored(fleet, ["big"]) == []
    assert "did you mean 'bigger'" in unscored(fleet, ["bigger"])[0]
    assert unscored(parse_fleet(SMALL + "prior_quality = 0.5\n"), []) == []


def test_lines_survive_comments_quotes_and_multiline_strings() -> None:
    text = '# a = 1\n[a."b.c"]\nx = """\n[not.a.table]\ny = 2\n"""\n"k k" = [\n  1,\n]\n  z.w=3\n'
    lines = lines_of_keys(text)
    assert lines == {("a", "b.c"): 2, ("a", "b.c", "x"): 3, ("a", "b.c", "k k"): 7, ("a", "b.c", "z", "w"): 10}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet='[]."=\n a1{}#,', max_size=80).map(lambda tail: SMALL + tail))
def test_no_text_makes_anything_but_a_fleet_or_a_config_error(text: str) -> None:
    try:
        parse_fleet(text)
    except ConfigError as error:
        assert str(error)
