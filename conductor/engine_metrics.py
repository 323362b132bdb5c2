"""The live engine's snapshot as Prometheus families.

Enters: an `EngineSnapshot`. Leaves: counters, gauges and histograms named onebeat_engine_*. Knows no engine: whoever
scrapes reads the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from onebeat.engine.snapshot import Distribution, EngineSnapshot

MS = 1e-3


def families(snapshot: EngineSnapshot) -> Iterator[Metric]:
    """Everything in the snapshot, in base units."""
    ended = CounterMetricFamily("onebeat_engine_prompts", "Prompts that the router took, by ending.", labels=["ending"])
    for ending in ("answered", "failed", "cancelled", "deadline_misses", "overloaded"):
        ended.add_metric([ending], getattr(snapshot, ending))
    yield ended
    tokens = CounterMetricFamily("onebeat_engine_tokens", "Tokens of prompts, by their origin.", labels=["from"])
    tokens.add_metric(["computed"], snapshot.computed_tokens)
    tokens.add_metric(["prefix_cache"], snapshot.cached_tokens)
    yield tokens
    for name, text, count in (
        ("steps", "Forward passes.", snapshot.steps),
        ("restarts", "Restarts after a crash.", snapshot.restarts),
        ("late", "Answers that came after their deadline.", snapshot.late),
        ("evicted_blocks", "Blocks that the prefix cache gave up.", snapshot.evicted_blocks),
    ):
        yield CounterMetricFamily(f"onebeat_engine_{name}", text, count)
    for name, text, value in (
        ("ready", "1 while warmed up and answering.", float(snapshot.ready)),
        ("healthy", "0 from a crash until the model runs again.", float(snapshot.healthy)),
        ("waiting_prompts", "Accepted and not yet answered.", snapshot.waiting_prompts),
        ("queue_prompts", "How many may wait.", snapshot.queue_prompts),
        ("waiting_tokens", "Tokens not yet computed.", snapshot.waiting_tokens),
        ("cache_blocks_in_use", "Blocks of prompts under way.", snapshot.cache_blocks_in_use),
        ("cache_blocks_kept", "Blocks kept for prompts to come.", snapshot.cache_blocks_kept),
    ):
        yield GaugeMetricFamily(f"onebeat_engine_{name}", text, value)
    yield _histogram("step_tokens", "Tokens of a step.", snapshot.step_tokens, 1.0)
    yield _histogram("tokenize_seconds", "Tokenising one prompt.", snapshot.tokenize_ms, MS)
    yield _histogram("queued_seconds", "Waiting for a step.", snapshot.queued_ms, MS)
    yield _histogram("compute_seconds", "In steps.", snapshot.compute_ms, MS)
    yield _histogram("total_seconds", "From acceptance to answer.", snapshot.total_ms, MS)


def _histogram(name: str, text: str, found: Distribution, unit: float) -> Metric:
    running, buckets = 0.0, []
    bounds = (*(f"{bound * unit:g}" for bound in found.bounds), "+Inf")
    for bound, count in zip(bounds, found.counts, strict=True):
        running += count
        buckets.append((bound, running))
    family = HistogramMetricFamily(f"onebeat_engine_{name}", text)
    family.add_metric([], buckets, found.total * unit)
    return family
