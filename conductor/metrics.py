"""What /metrics tells, with the GenAI semantic names where they exist.

Enters: one call per finished request and attempt. Leaves: Prometheus' text. Counting is a list index and an addition;
the library's own objects are made when somebody scrapes. Names: OpenTelemetry's "Semantic conventions for generative AI
metrics" (gen_ai.client.operation.duration, gen_ai.client.token.usage, gen_ai.server.time_to_first_token), with dots as
underscores and the unit behind, as Prometheus has it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
ROUTER_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
Labels = tuple[str, ...]
Gauge = tuple[str, str, tuple[str, ...], Callable[[], Iterable[tuple[Labels, float]]]]


class Histogram:
    """Buckets by label values."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.bounds = bounds
        self.series: dict[Labels, list[float]] = {}

    def observe(self, value: float, labels: Labels) -> None:
        series = self.series.get(labels)
        if series is None:  # The buckets, the one above them all, and the sum.
            series = self.series[labels] = [0.0] * (len(self.bounds) + 2)
        series[bisect_left(self.bounds, value)] += 1.0
        series[-1] += value

    def family(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, series in self.series.items():
            running, buckets = 0.0, []
            for bound, count in zip((*map(str, self.bounds), "+Inf"), series, strict=False):
                running += count
                buckets.append((bound, running))
            family.add_metric(labels, buckets, series[-1])
        return family


class Counter:
    def __init__(self, name: str, documentation: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = labels
        self.series: dict[Labels, float] = {}

    def add(self, value: float, labels: Labels = ()) -> None:
        self.series[labels] = self.series.get(labels, 0.0) + value

    def family(self) -> Metric:
        family = CounterMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, value in self.series.items():
            family.add_metric(labels, value)
        return family


_CALL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model", "error_type")
_MODEL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


class Metrics(Collector):
    """All of the gateway's counters; `gauges` are read when scraped."""

    def __init__(self) -> None:
        self.duration = Histogram(
            "gen_ai_client_operation_duration_seconds", "Duration of upstream calls.", _CALL, DURATION_S
        )
        self.tokens = Histogram(
            "gen_ai_client_token_usage", "Tokens per upstream call.", ("gen_ai_token_type", *_MODEL), TOKENS
        )
        self.first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time to first content, streamed calls.", _MODEL, FIRST_TOKEN_S
        )
        self.per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time per token behind the first, streamed calls.",
            _MODEL,
            PER_TOKEN_S,
        )
        self.requests = Counter("onebeat_requests", "Client requests.", ("face", "outcome", "decided_by"))
        self.cost = Counter("onebeat_cost_usd", "Dollars spent upstream.", ("model",))
        self.reroutes = Counter("onebeat_reroutes", "Attempts that came to nothing, by cause.", ("model", "cause"))
        self.findings = Counter("onebeat_findings", "What the watch found.", ("detector", "acted"))
        self.router = Histogram("onebeat_router_seconds", "The router's own time.", ("decided_by",), ROUTER_S)
        self.added = Histogram("onebeat_request_seconds", "Duration of client requests.", ("outcome",), DURATION_S)
        self.gauges: list[Gauge] = []
        self.more: list[Callable[[], Iterable[Metric]]] = []
        """Whole families that others keep, read when scraped."""
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        for value in vars(self).values():
            if isinstance(value, Histogram | Counter):
                yield value.family()
        for name, documentation, labels, read in self.gauges:
            family = GaugeMetricFamily(name, documentation, labels=labels)
            for values, number in read():
                family.add_metric(values, number)
            yield family
        for read_families in self.more:
            yield from read_families()

    def text(self) -> bytes:
        return generate_latest(self._registry)
