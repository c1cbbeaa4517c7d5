"""The simulator's loop on the real scheduler classes: what is recorded, what is refused, and that it repeats."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest

from vllm_hybrid.sim.device import Device, load_device, parse_device
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, SimError, SimRequest, simulate

pytestmark = pytest.mark.oracle

STOCK = Contender("stock", stock="fcfs")
OURS = Contender("ours")
VTC = Contender("vtc", hybrid={"preset": "vtc"})
SMALL = EngineSettings(max_seqs=16, step_tokens=256, pool_tokens=4096, max_model_len=2048)


def device(**changes: object) -> Device:
    plain = {
        "schema": 1,
        "kind": "step_linear",
        "name": "plain",
        "kv_tokens": 4096,
        "source": "test",
        "licence": "none",
    }
    costs = {
        "constant_s": 0.01,
        "decode_s": 1e-4,
        "prefill_token_s": 1e-4,
        "decode_context_token_s": 1e-6,
        "pair_s": 0.0,
    }
    return parse_device({**plain, **costs, **changes}, "test")


def mixed_load(seed: int, count: int = 40) -> list[SimRequest]:
    rnd = random.Random(seed)
    return [
        SimRequest(
            f"r{i}",
            arrival_s=i * 0.05,
            prompt_tokens=rnd.randint(1, 600),
            output_tokens=rnd.randint(1, 80),
            client=f"c{i % 3}",
            lane="offline" if i % 4 == 0 else "online",
        )
        for i in range(count)
    ]


def same_record(a: RunRecord, b: RunRecord) -> bool:
    timeless = [dataclasses.replace(r, wall_s=0.0, cpu_s=0.0) for r in (a, b)]
    return repr(timeless[0]) == repr(timeless[1])


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("contender", [STOCK, OURS, VTC], ids=lambda c: c.name)
def test_every_request_gets_all_its_tokens_in_order_of_time(contender: Contender, async_mode: bool) -> None:
    run = simulate(mixed_load(1), contender, device(), dataclasses.replace(SMALL, async_mode=async_mode))
    for record in run.requests:
        assert len(record.token_s) == record.request.output_tokens
        assert record.request.arrival_s <= record.scheduled_s < record.token_s[0]
        assert list(record.token_s) == sorted(record.token_s)
        assert record.finished_s == record.token_s[-1] <= run.end_s
        assert not record.refused
    assert run.policy_errors == 0


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_steps_follow_each_other_and_hold_all_the_work(async_mode: bool) -> None:
    run = simulate(mixed_load(2), STOCK, device(), dataclasses.replace(SMALL, async_mode=async_mode))
    steps = run.steps
    ends = [begin + seconds for begin, seconds in zip(steps.start_s, steps.seconds)]
    assert all(end <= begin for end, begin in zip(ends, steps.start_s[1:]))
    recomputed = sum(r.recomputed_tokens for r in run.requests)
    # The last token of an output is never computed itself.
    work = sum(r.request.prompt_tokens + r.request.output_tokens - 1 for r in run.requests)
    assert sum(steps.prefill_tokens) + sum(steps.decodes) == work + recomputed


def test_the_device_says_what_a_step_takes() -> None:
    run = simulate([SimRequest("r", 1.0, 200, 3)], STOCK, device(request_overhead_s=0.5), SMALL)
    prefill_s, first_s, second_s = 0.01 + 200 * 1e-4, 0.01 + 1e-4 + 201e-6, 0.01 + 1e-4 + 202e-6
    expected = itertools.accumulate([1.5 + prefill_s, first_s, second_s])
    assert list(run.requests[0].token_s) == pytest.approx(list(expected))
    assert list(run.steps.start_s) == pytest.approx([1.0, 1.0 + prefill_s, 1.0 + prefill_s + first_s])


def test_async_schedules_the_next_step_before_the_last_one_returns() -> None:
    load = [SimRequest("a", 0.0, 100, 20), SimRequest("b", 0.015, 100, 2)]
    sync = simulate(load, STOCK, device(), SMALL)
    overlapped = simulate(load, STOCK, device(), dataclasses.replace(SMALL, async_mode=True))
    # What arrives during a step waits one step longer: the next one is scheduled already.
    assert overlapped.requests[1].token_s[0] > sync.requests[1].token_s[0]
    assert overlapped.requests[0].token_s[0] == sync.requests[0].token_s[0]


def test_a_pool_too_small_for_all_preempts_and_counts_what_is_computed_twice() -> None:
    load = [SimRequest(f"r{i}", 0.0, 300, 200) for i in range(8)]
    run = simulate(load, STOCK, device(), dataclasses.replace(SMALL, pool_tokens=2560))
    assert sum(r.preemptions for r in run.requests) > 0
    for record in run.requests:
        assert (record.recomputed_tokens > 0) == (record.preemptions > 0)


def test_a_shared_prefix_is_found_and_an_unshared_one_is_not() -> None:
    alike = {"hash_ids": (7, 8), "hash_block_tokens": 128}
    load = [
        SimRequest("first", 0.0, 300, 2, **alike),
        SimRequest("second", 1.0, 300, 2, **alike),
        SimRequest("half", 2.0, 300, 2, hash_ids=(7, 9), hash_block_tokens=128),
        SimRequest("none", 3.0, 300, 2),
        SimRequest("other", 4.0, 300, 2),
    ]
    run = simulate(load, STOCK, device(), dataclasses.replace(SMALL, prefix_caching=True))
    assert [r.cached_tokens for r in run.requests] == [0, 256, 128, 0, 0]
    off = simulate(load, STOCK, device(), SMALL)
    assert [r.cached_tokens for r in off.requests] == [0] * 5


@pytest.mark.parametrize("contender", [STOCK, VTC], ids=lambda c: c.name)
def test_the_same_input_gives_the_same_record_byte_for_byte(contender: Contender) -> None:
    noisy = device(noise_ratio=0.05)
    first, second = (simulate(mixed_load(3), contender, noisy, SMALL, seed=5) for _ in range(2))
    assert same_record(first, second)
    assert not same_record(first, simulate(mixed_load(3), contender, noisy, SMALL, seed=6))


def test_one_client_without_a_target_is_served_exactly_as_by_stock() -> None:
    load = [dataclasses.replace(r, client="one", lane="online") for r in mixed_load(4)]
    stock, ours = (simulate(load, who, device(), SMALL) for who in (STOCK, OURS))
    assert [r.token_s for r in stock.requests] == [r.token_s for r in ours.requests]
    assert ours.planned_steps == ours.reused_steps == 0


def test_the_predictor_is_held_against_the_device() -> None:
    run = simulate(mixed_load(5, count=200), OURS, device(), SMALL)
    judged = [(p, s) for p, s in zip(run.steps.predicted_s, run.steps.seconds) if not math.isnan(p)]
    assert len(judged) > len(run.steps) / 2
    assert sum(abs(p / s - 1) for p, s in judged[len(judged) // 2 :]) / (len(judged) / 2) < 0.05
    stock = simulate(mixed_load(5), STOCK, device(), SMALL)
    assert all(math.isnan(p) for p in stock.steps.predicted_s)


def test_a_run_can_be_cut_short() -> None:
    load = mixed_load(6)
    whole, cut = (simulate(load, STOCK, device(), SMALL, until_s=until_s) for until_s in (None, 1.0))
    assert cut.end_s == 1.0
    assert {r.finished_s for r in cut.requests if r.request.arrival_s >= 1.0} == {None}
    for short, full in zip(cut.requests, whole.requests):
        assert short.token_s == full.token_s[: len(short.token_s)]
        assert all(s > 0.9 for s in full.token_s[len(short.token_s) :])


def test_a_rate_limit_refuses_at_arrival() -> None:
    limited = Contender("rpm", hybrid={"preset": "rpm", "presets": {"rpm": {"limit": 2}}})
    load = [SimRequest(f"r{i}", float(i), 32, 4, client="greedy") for i in range(5)]
    load.append(SimRequest("later", 61.5, 32, 4, client="greedy"))
    run = simulate(load, limited, device(), SMALL)
    assert [r.refused for r in run.requests] == [False, False, True, True, True, False]
    assert [len(r.token_s) for r in run.requests] == [4, 4, 0, 0, 0, 4]


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_time_passes_while_a_policy_holds_its_work_back(async_mode: bool) -> None:
    held = {"preset": "hygen_star", "presets": {"hygen_star": {"offline_rate": 2.0}}}
    load = [SimRequest(f"r{i}", 0.0, 32, 2, lane="offline") for i in range(8)]
    settings = dataclasses.replace(SMALL, async_mode=async_mode)
    run = simulate(load, Contender("held", hybrid=held), device(), settings)
    starts = sorted(r.scheduled_s for r in run.requests)
    assert starts[-1] - starts[0] > 2.0
    assert all(r.finished_s is not None for r in run.requests)


def test_stock_priority_serves_the_lower_number_first() -> None:
    load = [SimRequest(f"r{i}", 0.0, 200, 50, priority=i % 2) for i in range(8)]
    narrow = dataclasses.replace(SMALL, max_seqs=2)
    run = simulate(load, Contender("priority", stock="priority"), device(), narrow)
    urgent = [r.finished_s for r in run.requests if r.request.priority == 0]
    assert max(urgent) < min(r.finished_s for r in run.requests if r.request.priority == 1)


def test_a_contender_may_have_an_engine_of_its_own() -> None:
    run = simulate(
        [SimRequest("r", 0.0, 200, 2)], Contender("s", stock="fcfs", engine={"step_tokens": 64}), device(), SMALL
    )
    assert list(run.steps.prefill_tokens) == [64, 64, 64, 8, 0]
    assert run.settings.step_tokens == 64


def test_progress_is_told() -> None:
    told: list[tuple[float, int]] = []
    load = [SimRequest(f"r{i}", i * 0.5, 16, 60) for i in range(20)]
    simulate(load, STOCK, device(), SMALL, on_progress=lambda now_s, finished: told.append((now_s, finished)))
    assert told and told == sorted(told)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (SimRequest("x", 0.0, 2000, 100), "2100 tokens (prompt and output) are more than max_model_len 2048"),
        (SimRequest("x", 0.0, 1500, 500), "2000 tokens (prompt and output) do not fit the pool of 1600"),
        (SimRequest("x", 0.0, 0, 5), "0 prompt and 5 output tokens; both must be at least 1"),
        (SimRequest("x", -1.0, 5, 5), "arrives at -1.0 s; times start at 0"),
        (SimRequest("x", math.nan, 5, 5), "arrives at nan s; times start at 0"),
        (SimRequest("x", 0.0, 5, 5, lane="batch"), "lane 'batch'; known: online, offline"),
        (SimRequest("y", 0.0, 5, 5), "its id occurs twice"),
    ],
)
def test_a_request_that_cannot_be_served_is_named(request_: SimRequest, complaint: str) -> None:
    load = [SimRequest("y", 0.0, 10, 10), request_]
    with pytest.raises(SimError) as error:
        simulate(load, STOCK, device(), dataclasses.replace(SMALL, pool_tokens=1609))
    assert str(error.value) == f"request {request_.request_id}: {complaint}"


@pytest.mark.parametrize(
    ("contender", "complaint"),
    [
        (Contender("c", stock="lifo"), "contender c: stock must be one of fcfs, priority, not 'lifo'"),
        (Contender("c", engine={"step_tokens": 64}), "contender c: step_tokens = 64: must be at least max_seqs, 256"),
        (Contender("c", engine={"max_seqs": 0}), "contender c: max_seqs = 0: must be at least 1"),
        (Contender("c", engine={"watermark": 2}), "contender c: watermark = 2: must be at least 0 and below 1"),
        (Contender("c", engine={"long_prefill_tokens": -1}), "contender c: long_prefill_tokens = -1: must be 0 to"),
        (Contender("c", engine={"seqs": 3}), "contender c: unknown engine setting 'seqs'; known: max_seqs"),
    ],
)
def test_a_contender_that_makes_no_sense_is_named(contender: Contender, complaint: str) -> None:
    with pytest.raises(SimError, match=complaint):
        simulate([], contender, load_device("a10g_llama2_7b"))
