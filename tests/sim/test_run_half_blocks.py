"""Half blocks under the simulator: the real scheduler, block manager and pool; only the device is a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.sim.test_run import STOCK, device, mixed_load
from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.device_models import HalfCost
from vllm_hybrid.sim.loop import Simulation
from vllm_hybrid.sim.run import Contender, EngineSettings, RunRecord, SimError, SimRequest, simulate

pytestmark = pytest.mark.oracle

OPT_13B = load_device("a100_40_opt_13b")
TIGHT = EngineSettings(max_seqs=64, step_tokens=512, pool_tokens=2048, max_model_len=2048, prefix_caching=True)


def ours(cache: str, **config: object) -> Contender:
    return Contender(cache, hybrid={"cache": cache, **config})


def burst(count: int = 120) -> list[SimRequest]:
    return [SimRequest(f"r{i}", 0.01 * i, 60 + i % 48, 100) for i in range(count)]


def mean_batch(run: RunRecord) -> float:
    return sum(run.steps.decodes) / len(run.steps)


@pytest.mark.parametrize("cache", ["hidden", "fp8"])
def test_a_burst_finds_twice_the_room(cache: str) -> None:
    kv, half = (simulate(burst(), ours(form), OPT_13B, TIGHT) for form in ("off", cache))
    assert all(record.finished_s is not None for run in (kv, half) for record in run.requests)
    assert mean_batch(half) >= 1.5 * mean_batch(kv) and len(half.steps) <= 0.7 * len(kv.steps)
    assert half.policy_errors == 0


def watched_changes(scheduler: Any) -> dict[str, int]:
    """Counts, from now on, how often a request that ran in one form runs in the other."""
    last: dict[str, str] = {}
    changes = {"KV": 0, "half": 0}
    schedule = scheduler.schedule

    def schedule_and_look(*args: object) -> object:
        step = schedule(*args)
        for request_id in step.num_scheduled_tokens:
            form = "half" if request_id in scheduler.blocks.half_requests else "KV"
            changes[form] += last.setdefault(request_id, form) != form
            last[request_id] = form
        return step

    scheduler.schedule = schedule_and_look
    return changes


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("preset", ["hybrid", "vtc", "apt"])
def test_forms_come_and_go_and_nothing_is_left(preset: str, async_mode: bool) -> None:
    slo = {"slo": {"online": {"ttft_s": 1.0, "tbt_s": 1.0}}} if preset == "apt" else {}
    settings = dataclasses.replace(TIGHT, async_mode=async_mode, max_seqs=16)
    simulation = Simulation(mixed_load(3), ours("hidden", preset=preset, **slo), OPT_13B, settings, seed=0)
    changes = watched_changes(simulation.scheduler)
    run = simulation.run(None)
    assert all(len(record.token_s) == record.request.output_tokens for record in run.requests)
    blocks = simulation.scheduler.blocks
    blocks.integrity()
    # To KV by a move or a preemption; to the half form by a preemption, which this load brings about under `hybrid`.
    assert changes["KV"] > 0 and (changes["half"] > 0 or preset != "hybrid")
    assert blocks.demand_blocks == 0 and not blocks.half_requests and run.policy_errors == 0


def most_half(monkeypatch: pytest.MonkeyPatch, extra_s: float) -> tuple[int, int]:
    """Of a burst under `apt`, the most requests of the half form at once, and the steps; extra_s: of a block's decode
    in it."""
    monkeypatch.setattr(HalfCost, "half_extra_s", lambda self, rows, tokens: extra_s * tokens / 16)
    slo = {"online": {"ttft_s": 20.0, "tbt_s": 20.0}}
    simulation = Simulation(burst(), ours("hidden", preset="apt", slo=slo), OPT_13B, TIGHT, seed=0)
    scheduler, most = simulation.scheduler, 0
    schedule = scheduler.schedule

    def schedule_and_look(*args: object) -> object:
        nonlocal most
        step = schedule(*args)
        most = max(most, len(scheduler.blocks.half_requests))
        return step

    scheduler.schedule = schedule_and_look
    run = simulation.run(None)
    assert all(record.finished_s is not None for record in run.requests) and run.policy_errors == 0
    return most, len(run.steps)


def test_under_apt_the_price_of_the_half_form_decides_who_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap, steps_cheap = most_half(monkeypatch, 1e-6)
    dear, steps_dear = most_half(monkeypatch, 10.0)
    assert cheap > 10 and dear == 0 and steps_cheap < steps_dear


def test_a_devices_model_prices_a_block_as_its_steps_do() -> None:
    per_block = {form: HalfCost(OPT_13B, form).half_extra_s(0, 16) for form in ("hidden", "projected", "fp8")}
    assert per_block["fp8"] < 0 <= per_block["hidden"] < 0.1 * per_block["projected"]
    assert HalfCost(OPT_13B, "projected").half_extra_s(0, 1600) == pytest.approx(100 * per_block["projected"])


def test_the_metrics_tell_blocks_and_requests_by_form() -> None:
    simulation = Simulation(mixed_load(3), ours("hidden"), OPT_13B, dataclasses.replace(TIGHT, max_seqs=16), seed=0)
    scheduler, told = simulation.scheduler, []
    schedule = scheduler.schedule

    def tell_and_schedule(*args: object) -> object:
        told.append((scheduler.report.cache_blocks(), scheduler.report.cache_requests()))
        return schedule(*args)

    scheduler.schedule = tell_and_schedule
    simulation.run(None)
    blocks, requests = zip(*told, strict=True)
    assert {sum(tell.values()) for tell in blocks} == {scheduler.blocks.block_pool.num_gpu_blocks - 1}
    assert max(tell["half"] for tell in blocks) > 0 < max(tell["half"] for tell in requests)
    assert any(tell["kv"] and tell["half"] for tell in requests)
    assert scheduler.report.cache_blocks()["half"] == 0


def test_projecting_in_every_step_is_slower_than_reading_absorbed() -> None:
    absorbed, projected = (
        simulate(burst(), dataclasses.replace(ours("hidden"), engine={"project_hidden": flag}), OPT_13B, TIGHT)
        for flag in (False, True)
    )
    assert projected.end_s > 1.2 * absorbed.end_s


def test_without_pressure_forms_change_nothing() -> None:
    roomy = dataclasses.replace(TIGHT, pool_tokens=20_000)
    auto, off, stock = (simulate(burst(), who, OPT_13B, roomy) for who in (ours("auto"), ours("off"), STOCK))
    assert auto.steps.seconds == off.steps.seconds == stock.steps.seconds


def test_a_device_that_does_not_know_the_cost_is_refused() -> None:
    with pytest.raises(SimError, match="cache = 'hidden': device plain: the cost of the cache form hidden"):
        simulate(burst(), ours("hidden"), device(), TIGHT)
    assert simulate(burst(4), ours("auto"), device(), TIGHT).end_s > 0
