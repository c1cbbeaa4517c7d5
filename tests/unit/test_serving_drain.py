"""Polling the engines: exact deltas, and failures that are counted, said once and survived."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.drained import DRAINED
from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.serving.drain import DrainPoller
from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.latency_metrics import LatencyMetrics
from vllm_hybrid.serving.metrics import HybridMetrics


class Engines:
    """As much of an engine client as the poller uses."""

    engine_ranks_managed = (0, 3)

    def __init__(self, answer: Callable[[], list[Any]]) -> None:
        self.answer = answer
        self.asked = 0

    async def call_utility_all_async(self, method: str, *arguments: Any) -> list[Any]:
        assert method == "hybrid_drain"
        self.asked += 1
        return self.answer()


def poller(engines: Engines) -> tuple[DrainPoller, CollectorRegistry]:
    registry = CollectorRegistry()
    metrics, times = HybridMetrics(registry), LatencyMetrics(registry)
    return DrainPoller(engines, metrics, ClientLabels(MetricsConfig()), times, interval_s=0.001), registry


def test_each_engine_is_recorded_under_its_rank() -> None:
    polling, registry = poller(Engines(lambda: [DRAINED, DRAINED]))
    asyncio.run(polling.poll())
    for engine in ("0", "3"):
        labels = {"engine": engine, "lane": "online", "kind": "prompt"}
        assert registry.get_sample_value("vllm_hybrid_tokens_total", labels) == 50


def test_a_failing_engine_is_counted_logged_once_a_kind_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Any] = [ValueError("late"), ValueError("late"), KeyError("tokens"), ValueError("late")]

    def answer() -> list[Any]:
        if failures:
            raise failures.pop()
        return [DRAINED, DRAINED]

    polling, registry = poller(Engines(answer))
    with caplog.at_level(logging.WARNING, "vllm.hybrid.drain"):
        for _ in range(5):
            asyncio.run(polling.poll())
    assert registry.get_sample_value("vllm_hybrid_drain_errors_total", {"kind": "ValueError"}) == 3
    assert registry.get_sample_value("vllm_hybrid_drain_errors_total", {"kind": "KeyError"}) == 1
    assert len(caplog.records) == 2
    labels = {"engine": "0", "lane": "online", "kind": "prompt"}
    assert registry.get_sample_value("vllm_hybrid_tokens_total", labels) == 50


def test_polling_goes_on_until_it_is_cancelled() -> None:
    engines = Engines(lambda: [DRAINED, DRAINED])
    polling, _ = poller(engines)

    async def run() -> None:
        task = asyncio.create_task(polling.run())
        while engines.asked < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(run(), 30))
