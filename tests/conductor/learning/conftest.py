"""A backbone, outcomes, prices and a fitted router for everything that goes through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebeat.cli import main
from tests.conductor.learning.house import MODELS, Refused, outcomes, prompts, train, write
from tools.synthetic_checkpoint import TINY, write_checkpoint


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, outcomes, prices, and a router fitted on them."""
    folder = tmp_path_factory.mktemp("house")
    write_checkpoint(folder / "backbone", TINY)
    write(folder / "outcomes.jsonl", outcomes(prompts(160), ["cheap", "dear", "other"]))
    listed = {name: {"input_usd_per_million": a, "output_usd_per_million": b} for name, (a, b) in MODELS.items()}
    (folder / "prices.json").write_text(json.dumps(listed))
    assert train(folder, "router") == 0
    return folder


@pytest.fixture
def refused(house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command that must end in one sentence, before a prompt is read and leaving nothing behind."""

    def run(command: list[str], message: str) -> None:
        for module in ("train", "evaluate", "features"):
            monkeypatch.setattr(
                f"onebeat.conductor.learning.{module}.extract", lambda *_, **__: pytest.fail("prompts were read")
            )
        capsys.readouterr()
        before = {path.name for path in house.iterdir()}
        assert main(command) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("onebeat: ") == 1 and "Traceback" not in error
        assert {path.name for path in house.iterdir()} == before

    return run
