"""`onebeat doctor`: one broken part never hides the next, and every finding says how to mend it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from onebeat import cli
from onebeat.engine.config import BackboneConfig
from tools.synthetic_checkpoint import FLEET, write_checkpoint, write_router

FLEET_TOML = """
[providers.openai]
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "DOCTOR_TEST_KEY"

[models."{scored}"]
provider = "openai"
context_tokens = 8000
input_usd_per_million = 1.0
output_usd_per_million = 2.0
shutdown_date = {shutdown}

[models."never-heard-of"]
provider = "openai"
context_tokens = 8000
input_usd_per_million = 1.0
output_usd_per_million = 2.0
"""


@pytest.fixture(scope="module")
def router_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    config = BackboneConfig.from_json(
        {
            "model_type": "llama",
            "vocab_size": 300,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "intermediate_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512,
        }
    )
    write_checkpoint(folder, config)
    write_router(folder, layer=2)
    return folder


def diagnose(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    code = cli.main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_healthy_router_is_found_healthy(
    router_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, findings = diagnose(capsys, "--router", str(router_folder))
    assert code == 0
    (router,) = [f for f in findings if f["part"] == "router" and f["level"] == "ok"]
    assert f"{len(FLEET)} columns" in router["text"]
    assert any("TOPS" in f["text"] for f in findings)


def test_config_problems_are_listed_beside_a_missing_router(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOCTOR_TEST_KEY", raising=False)
    config = tmp_path / "fleet.toml"
    soon = datetime.date.today() + datetime.timedelta(days=5)
    config.write_text(FLEET_TOML.format(scored="any", shutdown=soon))
    code, findings = diagnose(capsys, "--router", str(tmp_path / "nowhere"), "--config", str(config))
    assert code == 1
    assert [f["level"] for f in findings if f["part"] == "router"] == ["problem"]
    texts = [f["text"] for f in findings if f["part"] == "config"]
    assert any("$DOCTOR_TEST_KEY, which is not set" in text for text in texts)
    assert any(f"shuts down on {soon}, in 5 days" in text for text in texts)


def test_model_that_no_column_scores_is_noted(
    router_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCTOR_TEST_KEY", "secret-value")
    config = tmp_path / "fleet.toml"
    far = datetime.date.today() + datetime.timedelta(days=400)
    config.write_text(FLEET_TOML.format(scored=FLEET[0][0], shutdown=far))
    code, findings = diagnose(capsys, "--router", str(router_folder), "--config", str(config))
    assert code == 0
    notes = [f["text"] for f in findings if f["part"] == "config" and f["level"] == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("never-heard-of has no column")
    assert "secret-value" not in json.dumps(findings)


def test_broken_config_is_one_problem_per_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text(FLEET_TOML.format(scored="a", shutdown="2030-01-01").replace("context_tokens", "contxt_tokens"))
    code, findings = diagnose(capsys, "--router", str(tmp_path), "--config", str(config))
    problems = [f["text"] for f in findings if f["part"] == "config" and f["level"] == "problem"]
    assert code == 1
    assert sum("context_tokens" in text for text in problems) >= 2
