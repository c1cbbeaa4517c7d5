"""Asks the engines once a second for what they have counted, and adds it to this server's metrics.

A utility call is answered between two steps, so one question is in flight at a time and a slow step only delays
the numbers.  A failure never reaches the server: it is counted, and logged the first time its kind is seen.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.latency import Latencies
from vllm_hybrid.serving.latency_metrics import LatencyMetrics
from vllm_hybrid.serving.metrics import HybridMetrics

logger = logging.getLogger("vllm.hybrid.drain")

INTERVAL_S = 1.0
UTILITY = "hybrid_drain"


class DrainPoller:
    """Polls the engines behind one engine client (vLLM's `AsyncMPClient`)."""

    def __init__(
        self,
        engine_core: Any,
        metrics: HybridMetrics,
        labels: ClientLabels,
        latency_metrics: LatencyMetrics,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._engine_core = engine_core
        self._metrics = metrics
        self._labels = labels
        self._latency_metrics = latency_metrics
        self._interval_s = interval_s
        self.latencies = Latencies()
        self._kinds_logged: set[str] = set()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(self._interval_s)

    async def poll(self) -> None:
        """Ask every engine once."""
        try:
            several = len(self._engine_core.engine_ranks_managed) > 1
            named = self._labels.known if several else ()
            answers = await self._engine_core.call_utility_all_async(UTILITY, named)
            for engine, drained in zip(self._engine_core.engine_ranks_managed, answers, strict=True):
                self._labels.know(row["client"] for row in drained["clients"])
                self._metrics.record(engine, drained, self._labels.of)
            # Only now it is settled which clients are `other`.
            self._latency_metrics.record(self.latencies, self._labels, time.monotonic())
        except Exception as error:
            self._count(error)

    def _count(self, error: Exception) -> None:
        kind = type(error).__name__
        self._metrics.drain_errors.labels(kind).inc()
        if kind not in self._kinds_logged:
            self._kinds_logged.add(kind)
            logger.warning("vllm_hybrid: metrics not collected (%s: %s); logged once", kind, error)
