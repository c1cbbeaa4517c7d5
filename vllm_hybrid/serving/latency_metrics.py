"""Histograms of the times that `latency.py` collects, and the worst gap of the last minute."""

from __future__ import annotations

from collections import defaultdict

from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram

from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.latency import Latencies, WorstGap
from vllm_hybrid.serving.metrics import PREFIX

_OWNER = ["lane", "client"]
_FIRST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0, 1200.0)
_BETWEEN_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0)


class LatencyMetrics:
    """The times that this API server process saw."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(PREFIX + name, text, _OWNER, buckets=buckets, registry=registry)

        self._first = histogram("ttft_seconds", "Time from a request's arrival to its first token.", _FIRST_S)
        self._between = histogram("tbt_seconds", "Time between two outputs of a request.", _BETWEEN_S)
        self._worst = Gauge(
            PREFIX + "worst_gap_seconds",
            "Longest time between two outputs of a request that ended within the last minute.",
            _OWNER,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._gaps: defaultdict[tuple[str, str], WorstGap] = defaultdict(WorstGap)

    def record(self, latencies: Latencies, labels: ClientLabels, now_s: float) -> None:
        """Add the times since the last call."""
        first, between = latencies.take()
        for (lane, client), times in first.items():
            observe = self._first.labels(lane, labels.of(client)).observe
            for seconds in times:
                observe(seconds)
        for (lane, client), times in between.items():
            owner = (lane, labels.of(client))
            observe = self._between.labels(*owner).observe
            for seconds in times:
                observe(seconds)
            self._gaps[owner].note(max(times), now_s)
        for owner, gap in self._gaps.items():
            self._worst.labels(*owner).set(gap.value(now_s))
