"""The scheduler's metrics on Ray's Prometheus endpoint, with the replica, deployment and application as labels.

For the path of `ray.serve.llm`, which has no `/metrics` of vLLM's own; there vLLM's figures come to Ray's endpoint by
its `RayPrometheusStatLogger`. Names and meanings are those of `serving/metrics.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.serve import metrics as ray_metrics

from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.metrics import (
    COUNTERS,
    GAUGES,
    PREFIX,
    counted,
    counted_by_client,
    standing,
    standing_by_client,
)

logger = logging.getLogger("vllm.hybrid.ray")
INTERVAL_S = 2.0


class MetricsFeed:
    """Drains one engine into Ray's metrics."""

    def __init__(self, engine_core: Any, settings: MetricsConfig) -> None:
        self._core = engine_core
        self._labels = ClientLabels(settings)
        self._tags: dict[str, Any] = {name: labels for name, (_, labels) in (*COUNTERS.items(), *GAUGES.items())}
        self._counters = {
            name: ray_metrics.Counter(f"{PREFIX}{name}", description=text, tag_keys=self._tags[name])
            for name, (text, _) in COUNTERS.items()
        }
        self._gauges = {
            name: ray_metrics.Gauge(f"{PREFIX}{name}", description=text, tag_keys=self._tags[name])
            for name, (text, _) in GAUGES.items()
        }

    async def run(self) -> None:
        """Feed until cancelled; a failure is logged and the next round tries again."""
        while True:
            try:
                self.record(await self._core.call_utility_async("hybrid_drain"))
            except Exception as error:
                logger.warning("vllm_hybrid: metrics not collected (%s)", type(error).__name__)
            await asyncio.sleep(INTERVAL_S)

    def record(self, drained: dict[str, Any]) -> None:
        """Add one answer of `hybrid_drain`."""
        clients = drained["clients"]
        self._labels.know(row["client"] for row in clients)
        for name, labels, value in (*counted(drained), *counted_by_client(clients, self._labels.of)):
            if value > 0:
                self._counters[name].inc(value, tags=self._tagged(name, labels))
        for name, labels, value in (*standing(drained), *standing_by_client(clients, self._labels.of)):
            self._gauges[name].set(value, tags=self._tagged(name, labels))

    def _tagged(self, name: str, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(self._tags[name], labels, strict=True))
