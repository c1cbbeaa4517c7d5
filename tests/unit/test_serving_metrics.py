"""What an engine hands out becomes exact counters, whatever registry they live in, with a bounded number of labels."""

from __future__ import annotations

import copy
import hashlib
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.drained import DRAINED
from vllm_hybrid.config.metrics import MetricsConfig
from vllm_hybrid.engine.clients import ClientTally
from vllm_hybrid.policy.request import Lane
from vllm_hybrid.serving.labels import ClientLabels
from vllm_hybrid.serving.latency import Latencies, WorstGap
from vllm_hybrid.serving.latency_metrics import LatencyMetrics
from vllm_hybrid.serving.metrics import COUNTERS, GAUGES, HybridMetrics

ALICE = hashlib.sha256(b"alice").hexdigest()[:12]


def labels(style: Literal["hashed", "names", "none"] = "hashed") -> ClientLabels:
    known = ClientLabels(MetricsConfig(clients=style))
    known.know(["alice", None])
    return known


def recorded(times: int = 1, style: Literal["hashed", "names", "none"] = "hashed") -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = HybridMetrics(registry)
    for _ in range(times):
        metrics.record(0, DRAINED, labels(style).of)
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"vllm_hybrid_{name}", {"engine": "0", **labels})


def test_deltas_add_up_and_states_replace_each_other() -> None:
    registry = CollectorRegistry()
    metrics = HybridMetrics(registry)
    metrics.record(0, DRAINED, labels().of)
    second = copy.deepcopy(DRAINED)
    second["requests"]["online"]["waiting"] = 0
    metrics.record(0, second, labels().of)
    assert value(registry, "requests", lane="online", state="waiting") == 0
    assert value(registry, "requests", lane="offline", state="paused") == 1
    assert value(registry, "tokens_total", lane="offline", kind="prompt") == 1000
    assert value(registry, "client_tokens_total", lane="online", client=ALICE, kind="output") == 14
    assert value(registry, "client_service_total", lane="offline", client="other") == 1280
    assert value(registry, "client_waiting_tokens", lane="offline", client="other") == 1000
    assert value(registry, "preemptions_total", lane="offline", reason="no_block") == 2
    assert value(registry, "recomputed_tokens_total", lane="offline") == 180
    assert value(registry, "pauses_total", lane="offline", reason="slot") == 2
    assert value(registry, "waited_seconds_total", lane="online", reason="slots") == 3
    assert value(registry, "waiting_requests", lane="offline", reason="own_queue") == 90
    assert value(registry, "oldest_request_seconds", lane="offline") == 90.0
    assert value(registry, "budget_tokens_total", kind="used") == 120
    assert value(registry, "step_seconds_total", kind="real") == 2
    assert value(registry, "cache_blocks", form="half") == 4 and value(registry, "cache_requests", form="kv") == 3
    assert value(registry, "steps_total", mode="plan", contended="true") == 8
    assert value(registry, "steps_total", mode="plan", contended="false") == 2
    assert value(registry, "policy_errors_total") == 0
    assert value(registry, "bad_identity_total") == 2
    assert value(registry, "predictor_error_ratio") == 0.25


def test_every_metric_that_is_declared_is_served() -> None:
    families = {family.name for family in text_string_to_metric_families(generate_latest(recorded()).decode())}
    assert {f"vllm_hybrid_{name}" for name in (*COUNTERS, *GAUGES)} <= families


def test_engines_are_told_apart_and_ids_of_clients_are_never_shown_unasked() -> None:
    registry = CollectorRegistry()
    metrics = HybridMetrics(registry)
    metrics.record(0, DRAINED, labels().of)
    metrics.record(1, DRAINED, labels().of)
    samples = [sample for family in registry.collect() for sample in family.samples]
    assert {sample.labels["engine"] for sample in samples} == {"0", "1"}
    assert "alice" not in generate_latest(registry).decode()
    assert "alice" in generate_latest(recorded(style="names")).decode()


def test_without_clients_all_rows_are_one() -> None:
    registry = recorded(style="none")
    assert value(registry, "client_tokens_total", lane="online", client="all", kind="prompt") == 50
    assert value(registry, "client_waiting_requests", lane="offline", client="all") == 100


def test_a_predictor_that_knows_nothing_yet_shows_nothing() -> None:
    registry = CollectorRegistry()
    unknown = {**DRAINED, "predictor": {"error_ratio": None, "samples": 0}}
    HybridMetrics(registry).record(0, unknown, labels().of)
    assert value(registry, "predictor_error_ratio") is None


def test_a_hundred_thousand_clients_are_other() -> None:
    registry, tally = CollectorRegistry(), ClientTally({"configured"}, most=5)
    metrics, known = HybridMetrics(registry), ClientLabels(MetricsConfig(clients="names"))
    latencies, times = Latencies(), LatencyMetrics(registry)
    for flood in range(2):
        for i in range(50_000):
            cell = tally.cell((Lane(i % 2), f"client-{flood}-{i}"))
            cell.output_tokens += 1
            latencies._first["offline", f"client-{flood}-{i}"].append(0.5)
        tally.cell((Lane.ONLINE, "configured")).prompt_tokens += 3
        rows = tally.drain()
        known.know(row["client"] for row in rows)
        metrics.record(0, {**DRAINED, "clients": rows}, known.of)
        times.record(latencies, known, 0.0)
        assert len(rows) <= 6 * 2 + 2
    page = generate_latest(registry).decode()
    assert len(page) < 100_000 and page.count("client-") < 200
    counted = [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "vllm_hybrid_client_tokens_total"
    ]
    assert sum(sample.value for sample in counted if sample.labels["kind"] == "output") == 100_000
    assert {"client-0-0", "configured", "other"} <= {sample.labels["client"] for sample in counted}
    assert value(registry, "client_tokens_total", lane="online", client="configured", kind="prompt") == 6
    first = "vllm_hybrid_ttft_seconds_count"
    seen = [s for family in text_string_to_metric_families(page) for s in family.samples if s.name == first]
    assert sum(sample.value for sample in seen) == 100_000
    assert not latencies.take()[0]


class OutputProcessor:
    """The two methods of vLLM's output processor that are listened to, as they behave in vLLM."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}

    def add_request(self, request: Any) -> None:
        stats = SimpleNamespace(first_token_latency=0.0, last_token_ts=0.0)
        self.request_states[request.request_id] = SimpleNamespace(stats=stats, is_prefilling=True)

    def _update_stats_from_output(self, state: Any, output: Any, timestamp: float, iteration_stats: Any) -> None:
        if iteration_stats is not None:
            if state.is_prefilling:
                state.stats.first_token_latency = timestamp - output
            state.stats.last_token_ts = timestamp


def test_times_are_put_down_to_lane_and_client() -> None:
    latencies, processor = Latencies(), OutputProcessor()
    latencies.watch(processor)
    for client, arrival_s in (("alice", 1.0), ("bob", 2.0)):
        sampling = SimpleNamespace(extra_args={"client": client, "lane": "offline"})
        processor.add_request(SimpleNamespace(request_id=client, sampling_params=sampling))
        state = processor.request_states[client]
        processor._update_stats_from_output(state, arrival_s, 3.0, object())
        state.is_prefilling = False
        processor._update_stats_from_output(state, None, 3.25, object())
        processor._update_stats_from_output(state, None, 4.0, object())
        processor._update_stats_from_output(state, None, 9.0, None)  # vLLM keeps no times
    first, between = latencies.take()
    assert first == {("offline", "alice"): [2.0], ("offline", "bob"): [1.0]}
    assert between == {("offline", client): [0.25, 0.75] for client in ("alice", "bob")}
    assert latencies.take() == ({}, {})


def test_the_worst_gap_is_forgotten_after_a_minute() -> None:
    gap = WorstGap()
    gap.note(2.0, now_s=100.0)
    gap.note(1.0, now_s=105.0)
    gap.note(0.5, now_s=130.0)
    assert gap.value(155.0) == 2.0
    assert gap.value(165.0) == 0.5
    assert gap.value(300.0) == 0.0


@pytest.mark.parametrize("most", [0, 3])
def test_who_has_a_cell_keeps_it(most: int) -> None:
    tally = ClientTally((), most)
    cells = [tally.cell((Lane.ONLINE, f"c{i}")) for i in range(10)]
    assert [tally.cell((Lane.ONLINE, f"c{i}")) for i in range(10)] == cells
    assert len({id(cell) for cell in cells}) == most + 1
    assert tally.own((Lane.ONLINE, "c9")) is None


def test_who_has_figures_in_one_engine_has_them_in_all() -> None:
    engines = [ClientTally({"configured"}, most=2) for _ in range(2)]
    for at, tally in enumerate(engines):
        for number in range(5):
            tally.cell((Lane.ONLINE, f"engine{at}-{number}"))
    for _ in range(3):
        known = {client for tally in engines for _, client, _ in tally.named() if client is not None}
        for tally in engines:
            tally.follow(sorted(known))
            for at in range(2):
                for number in range(5):
                    tally.cell((Lane.ONLINE, f"engine{at}-{number}")).output_tokens += 1
    for tally in engines:
        own = {client for _, client, _ in tally.named() if client is not None}
        assert own == {f"engine{at}-{number}" for at in range(2) for number in range(2)}
