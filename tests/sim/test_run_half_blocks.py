"""Half blocks under the simulator: the real scheduler, block manager and pool; only the device is a model."""

from __future__ import annotations

import dataclasses

import pytest

from tests.sim.test_run import STOCK, device, mixed_load
from vllm_hybrid.sim.device import load_device
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


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("preset", ["hybrid", "vtc", "apt"])
def test_forms_come_and_go_and_nothing_is_left(preset: str, async_mode: bool) -> None:
    slo = {"slo": {"online": {"ttft_s": 1.0, "tbt_s": 1.0}}} if preset == "apt" else {}
    settings = dataclasses.replace(TIGHT, async_mode=async_mode, max_seqs=16)
    simulation = Simulation(mixed_load(3), ours("hidden", preset=preset, **slo), OPT_13B, settings, seed=0)
    run = simulation.run(None)
    assert all(len(record.token_s) == record.request.output_tokens for record in run.requests)
    blocks = simulation.scheduler.blocks
    blocks.integrity()
    assert blocks.demand_blocks == 0 and not blocks.half_requests and run.policy_errors == 0


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
