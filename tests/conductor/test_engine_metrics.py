"""The live engine's snapshot as Prometheus text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from onebeat.conductor.engine_metrics import families
from onebeat.conductor.metrics import Metrics
from onebeat.engine.engine import Engine
from tests.engine.fake_model import FakeModel, engine_of


def scraped(engine: Engine) -> dict[str, float]:
    metrics = Metrics()
    metrics.more.append(lambda: families(engine.snapshot()))
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_what_the_engine_counts_is_what_is_scraped() -> None:
    engine = engine_of(FakeModel())
    engine.start()
    try:
        for prompt in ("1 2 3", "4", " ".join(["7"] * 20), " ".join(["7"] * 20)):
            engine.submit(prompt).result(5)
        found = scraped(engine)
        assert found["onebeat_engine_ready"] == found["onebeat_engine_healthy"] == 1.0
    finally:
        engine.stop(5)
    assert found["onebeat_engine_prompts_total{ending=answered}"] == 4.0
    assert found["onebeat_engine_prompts_total{ending=overloaded}"] == 0.0
    assert (
        found["onebeat_engine_tokens_total{from=computed}"] + found["onebeat_engine_tokens_total{from=prefix_cache}"]
        == 44
    )
    assert found["onebeat_engine_tokens_total{from=prefix_cache}"] == 16.0
    assert found["onebeat_engine_total_seconds_count"] == found["onebeat_engine_total_seconds_bucket{le=+Inf}"] == 4.0
    assert 0.0 < found["onebeat_engine_total_seconds_sum"] < 5.0
    assert found["onebeat_engine_step_tokens_sum"] == found["onebeat_engine_tokens_total{from=computed}"]
    assert found["onebeat_engine_step_tokens_count"] == found["onebeat_engine_steps_total"]
    assert scraped(engine)["onebeat_engine_ready"] == 0.0
