"""The workloads: the same list for the same seed, the published rates and lengths, mistakes named in one line."""

from __future__ import annotations

import operator
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from vllm_hybrid.sim.records import SimRequest
from vllm_hybrid.sim.suites import WORKLOADS, MissingDataError, WorkloadError, make_workload, sources, workload_names
from vllm_hybrid.sim.suites.vtc import ABLATION_RATES

AVAILABLE = [name for name in workload_names() if WORKLOADS[name].is_available]


def rates(requests: list[SimRequest], duration_s: float) -> dict[str, float]:
    counts = Counter(request.client for request in requests)
    return {client: counts[client] / duration_s for client in sorted(counts)}


def requests_of(requests: list[SimRequest], client: str) -> list[SimRequest]:
    return [request for request in requests if request.client == client]


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_workload_is_a_function_of_its_seed(name: str) -> None:
    # A trace itself has nothing random in it; its twin has.
    parameters = {"source": "twin"} if "source" in WORKLOADS[name].parameters else {}
    first = make_workload(name, 7, **parameters)
    assert first == make_workload(name, 7, **parameters)
    assert (first == make_workload(name, 8, **parameters)) == (name == "mooncake")


@pytest.mark.parametrize("name", AVAILABLE)
def test_requests_are_sorted_numbered_and_serveable(name: str) -> None:
    requests = make_workload(name, 3)
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals) and arrivals[0] >= 0
    assert len({request.request_id for request in requests}) == len(requests)
    assert all(request.prompt_tokens >= 1 and request.output_tokens >= 1 for request in requests)
    assert all(request.prompt_tokens + request.output_tokens <= 16_384 for request in requests)
    assert all(request.priority == (request.lane == "offline") for request in requests)


@pytest.mark.parametrize(
    ("name", "duration_s", "expected"),
    [
        ("overload", 600, (1.5, 3.0)),
        ("proportional", 600, (0.25, 0.5, 1.5)),
        ("on_off_less", 600, (0.25, 2.0)),
        ("on_off_overload", 600, (1.0, 3.0)),
        ("increase", 600, (0.5, 1.1)),
        ("overload-multi", 360, (0.4,) * 3 + (0.6,) * 5),
        ("overload-weighted", 360, (0.4, 0.8, 1.2, 1.6)),
        ("poisson_short_long", 600, (8.0, 1.5)),
        ("poisson_short_long_2", 600, (8.0, 1.5)),
    ],
)
def test_vtc_clients_send_at_the_published_rates(name: str, duration_s: float, expected: tuple[float, ...]) -> None:
    found = rates(make_workload(name, 42), duration_s)
    assert tuple(found.values()) == pytest.approx(expected, rel=0.06)


def test_short_long_2_sets_long_prompts_against_long_outputs() -> None:
    requests = make_workload("poisson_short_long_2", 42)
    lengths = {(r.client, r.prompt_tokens, r.output_tokens) for r in requests}
    assert lengths == {("client0", 512, 32), ("client1", 32, 512)}


@pytest.mark.parametrize("name", ["on_off_less", "on_off_overload", "poisson_on_off_overload"])
def test_only_the_first_client_is_silent_every_second_minute(name: str) -> None:
    requests = make_workload(name, 42)
    minutes = {
        client: {int(r.arrival_s // 60) % 2 for r in requests_of(requests, client)} for client in rates(requests, 1)
    }
    assert minutes == {"client0": {0}, "client1": {0, 1}}


def test_dist_shift_has_three_phases() -> None:
    requests = make_workload("dist_shift", 42)
    phases = [rates([r for r in requests if i * 300 <= r.arrival_s < (i + 1) * 300], 300) for i in range(3)]
    assert [tuple(phase.values()) for phase in phases] == [
        pytest.approx((0.3, 2.0), rel=0.05),  # on in minutes 0, 2, 4 of five
        pytest.approx((1.0, 1.0), rel=0.05),
        pytest.approx((0.5, 1.5), rel=0.05),
    ]


@pytest.mark.parametrize(("pool", "length"), ABLATION_RATES)
def test_ablation_scales_rates_with_the_length(pool: int, length: int) -> None:
    requests = make_workload("ablation", 42, pool=pool, length=length)
    assert tuple(rates(requests, 600).values()) == pytest.approx(ABLATION_RATES[pool, length], rel=0.01)
    assert {(r.prompt_tokens, r.output_tokens) for r in requests} == {(length, length)}


def test_the_real_trace_has_the_published_counts_and_lengths() -> None:
    requests = make_workload("real", 42)
    counts = sorted(Counter(r.client for r in requests).values(), reverse=True)
    assert len(requests) == 1500 and len(counts) == 27 and counts[:6] == [296, 262, 199, 120, 67, 66]
    prompts, outputs = [r.prompt_tokens for r in requests], [r.output_tokens for r in requests]
    assert statistics.fmean(prompts) == pytest.approx(136, rel=0.08) and max(prompts) <= 1021
    assert statistics.fmean(outputs) == pytest.approx(256, rel=0.05) and max(outputs) <= 977
    assert statistics.median(outputs) == pytest.approx(211, rel=0.08)


def test_the_clients_of_the_real_trace_ask_for_the_published_shares() -> None:
    asked: Counter[str] = Counter()
    for request in make_workload("real", 42):
        asked[request.client] += request.prompt_tokens + 2 * request.output_tokens
    shares = [service / asked.total() for _, service in asked.most_common(6)]
    assert shares == pytest.approx([0.222, 0.199, 0.134, 0.063, 0.047, 0.046], abs=0.01)


def test_long_prompts_of_the_real_trace_have_long_answers() -> None:
    """The product of a request's lengths is 1.155 times what it were if they had nothing to do with each other."""
    requests = make_workload("real", 42)
    prompts, outputs = [r.prompt_tokens for r in requests], [r.output_tokens for r in requests]
    together = statistics.fmean(map(operator.mul, prompts, outputs))
    assert together / (statistics.fmean(prompts) * statistics.fmean(outputs)) == pytest.approx(1.155, abs=0.06)
    assert statistics.fmean(r.output_tokens for r in requests if r.prompt_tokens < 5) < 60


@pytest.mark.parametrize(("limit", "published"), [(30, 1324), (20, 1158), (15, 1053), (10, 900), (5, 581)])
def test_the_real_trace_meets_rate_limits_as_the_published_one_did(limit: int, published: int) -> None:
    """What a limit per minute lets through depends on when each client sends: the paper's five figures, within 4 %."""
    accepted: dict[str, list[float]] = {}
    for request in make_workload("real", 42):
        recent = [s for s in accepted.get(request.client, []) if s > request.arrival_s - 60]
        if len(recent) < limit:
            accepted.setdefault(request.client, []).append(request.arrival_s)
    let_through = sum(map(len, accepted.values()))
    assert let_through == pytest.approx(published, rel=0.04)


def test_a_higher_rate_replays_the_same_requests_faster() -> None:
    slow, fast = (make_workload("sarathi-chat", 1, qps=qps, source="twin") for qps in (1.0, 2.0))
    assert [r.arrival_s / 2 for r in slow] == pytest.approx([r.arrival_s for r in fast])
    assert [r.prompt_tokens for r in slow] == [r.prompt_tokens for r in fast]


def test_sarathi_lengths_are_those_of_the_paper() -> None:
    chat = make_workload("sarathi-chat", 1, requests=4000, source="twin")
    arxiv = make_workload("sarathi-arxiv", 1, requests=4000)
    assert statistics.median(r.prompt_tokens for r in chat) == pytest.approx(1730, rel=0.05)
    assert statistics.median(r.output_tokens for r in chat) == pytest.approx(415, rel=0.05)
    assert statistics.median(r.prompt_tokens for r in arxiv) == pytest.approx(7059, rel=0.05)
    assert statistics.quantiles([r.prompt_tokens for r in arxiv], n=10)[8] == pytest.approx(12985, rel=0.05)
    assert statistics.median(r.output_tokens for r in arxiv) == pytest.approx(208, rel=0.05)


@pytest.mark.parametrize("cv", [1.0, 5.0])
def test_apt_gaps_have_the_wanted_variation(cv: float) -> None:
    arrivals = [r.arrival_s for r in make_workload("apt", 5, qps=3.0, cv=cv, requests=20_000)]
    gaps = [b - a for a, b in pairwise(arrivals)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.1)
    assert len(arrivals) / arrivals[-1] == pytest.approx(3.0, rel=0.15)


def test_hygen_has_the_wanted_online_rate_and_offline_work_from_the_start() -> None:
    requests = make_workload("hygen", 2, qps=2.0, duration_s=100.0, source="twin")
    offline = [r for r in requests if r.lane == "offline"]
    assert len(requests) - len(offline) == 200
    assert len(offline) == 300 and {r.arrival_s for r in offline} == {0.0}
    assert all(r.prompt_tokens + r.output_tokens <= 4096 for r in requests)


@pytest.mark.parametrize("name", ["tenants-flood", "tenants-huge", "tenants-tiny", "tenants-on-off"])
def test_neighbours_send_the_same_with_and_without_the_adversary(name: str) -> None:
    together, alone = make_workload(name, 9), make_workload(name, 9, adversary=False)

    def sent(requests: list[SimRequest]) -> list[tuple[str, float, int, int]]:
        return [(r.client, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests if r.client != "adversary"]

    assert sent(together) == sent(alone) and len(together) > len(alone)
    assert "adversary" not in {r.client for r in alone}


def test_prefix_hashes_come_with_mooncake() -> None:
    if not WORKLOADS["mooncake"].is_available:
        with pytest.raises(MissingDataError):
            make_workload("mooncake", 0)
        return
    requests = make_workload("mooncake", 0)
    assert all(len(r.hash_ids) == -(-r.prompt_tokens // r.hash_block_tokens) for r in requests)
    assert len({r.hash_ids[0] for r in requests}) < len(requests)


def test_a_missing_trace_is_named_and_known_in_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sources.TRACES_VARIABLE, str(tmp_path))
    assert not WORKLOADS["mooncake"].is_available
    for name, parameters in (("mooncake", {}), ("azure_conv", {"source": "trace"})):
        with pytest.raises(MissingDataError, match=rf"{tmp_path}/\S+: no such file"):
            make_workload(name, 0, **parameters)
    assert make_workload("azure_conv", 0) == make_workload("azure_conv", 0, source="twin")


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("overlaod", {}, "workload 'overlaod': must be one of overload, proportional"),
        ("overload", {"qps": 3}, "'qps': must be one of duration_s"),
        ("overload", {"duration_s": 0}, "duration_s = 0: must be a number greater than 0"),
        ("overload", {"duration_s": "long"}, "duration_s = 'long': must be a number"),
        ("sarathi-chat", {"requests": 0.5}, "requests = 0.5: must be a number of at least 1"),
        ("sarathi-chat", {"source": "web"}, "source = 'web': must be one of auto, trace, twin"),
        ("ablation", {"pool": 1}, "pool/length = 1/256: must be one of 35000/256"),
        ("azure_conv", {"qps": 50.0, "duration_s": 3600.0}, "the source holds"),
    ],
)
def test_mistakes_are_named_in_one_line(name: str, parameters: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        make_workload(name, 0, **parameters)
    assert said in str(caught.value) and "\n" not in str(caught.value)
