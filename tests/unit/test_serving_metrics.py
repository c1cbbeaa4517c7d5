"""What an engine hands out becomes exact counters, whatever registry they live in."""

from __future__ import annotations

import copy
from typing import Any

from prometheus_client import CollectorRegistry

from vllm_hybrid.serving.metrics import HybridMetrics

DRAINED: dict[str, Any] = {
    "requests": {
        "online": {"waiting": 3, "running": 2, "paused": 0},
        "offline": {"waiting": 100, "running": 1, "paused": 1},
    },
    "tokens": {"online": {"prompt": 50, "output": 7}, "offline": {"prompt": 500, "output": 70}},
    "preemptions": {"online": 0, "offline": 2},
    "pauses": {"online": 0, "offline": 4},
    "steps": {"stock": 1, "plan": 5, "reuse": 10, "fallback": 0},
    "contended_steps": {"stock": 0, "plan": 4, "reuse": 6, "fallback": 0},
    "policy_errors": 0,
    "bad_identity": 1,
    "service": {"online": {"alice": 64.0}, "offline": {}},
    "predictor": {"error_ratio": 0.25, "samples": 12},
}


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"vllm_hybrid_{name}", {"engine": "0", **labels})


def test_deltas_add_up_and_states_replace_each_other() -> None:
    registry = CollectorRegistry()
    metrics = HybridMetrics(registry)
    metrics.record(0, DRAINED)
    second = copy.deepcopy(DRAINED)
    second["requests"]["online"]["waiting"] = 0
    metrics.record(0, second)
    assert value(registry, "requests", lane="online", state="waiting") == 0
    assert value(registry, "requests", lane="offline", state="paused") == 1
    assert value(registry, "tokens_total", lane="offline", kind="prompt") == 1000
    assert value(registry, "tokens_total", lane="online", kind="output") == 14
    assert value(registry, "preemptions_total", lane="offline") == 4
    assert value(registry, "pauses_total", lane="offline") == 8
    assert value(registry, "steps_total", mode="plan", contended="true") == 8
    assert value(registry, "steps_total", mode="plan", contended="false") == 2
    assert value(registry, "policy_errors_total") == 0
    assert value(registry, "bad_identity_total") == 2
    assert value(registry, "predictor_error_ratio") == 0.25


def test_engines_are_told_apart_and_clients_are_never_labels() -> None:
    registry = CollectorRegistry()
    metrics = HybridMetrics(registry)
    metrics.record(0, DRAINED)
    metrics.record(1, DRAINED)
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert {sample.labels["engine"] for sample in samples} == {"0", "1"}
    assert "alice" not in str(samples)


def test_a_predictor_that_knows_nothing_yet_shows_nothing() -> None:
    registry = CollectorRegistry()
    HybridMetrics(registry).record(0, {**DRAINED, "predictor": {"error_ratio": None, "samples": 0}})
    assert value(registry, "predictor_error_ratio") is None
