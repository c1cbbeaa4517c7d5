"""Thousands of random legal plans on the real schedulers: no output changes, nothing leaks, every plan is obeyed.

HYBRID_CHAOS_SEEDS sets how many seeds each world gets; one seed is about 6,000 steps over all worlds.
"""

import os

import pytest

from tests.oracle.chaos import CHAOS, USUAL, Rates, unleash
from tests.oracle.workload import Shape, check_end, draw_load, play
from vllm_hybrid.engine.tally import StepMode
from vllm_hybrid.sim.modelfree import World

pytestmark = pytest.mark.oracle

SEEDS = int(os.environ.get("HYBRID_CHAOS_SEEDS", "10"))
SHAPE = Shape()

ASYNC = pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
RUNNER = pytest.mark.parametrize("v2_runner", [False, True], ids=["runner-v1", "runner-v2"])
BLOCKS = pytest.mark.parametrize("blocks", [120, 400], ids=["tight", "roomy"])
DRAFTS = pytest.mark.parametrize("drafts", [0, 3], ids=["plain", "drafts"])


def run(world: World, seed: int, rates: Rates = USUAL) -> dict[str, int]:
    """One load under dice; returns what happened in it."""
    witnesses = []
    played = play(
        CHAOS,
        world,
        draw_load(seed, SHAPE),
        seed,
        SHAPE.abort_rate,
        prepare=lambda loop: witnesses.append(unleash(loop, seed, rates)),
    )
    check_end(played)
    tally = played.loop.scheduler.tally
    assert tally.policy_errors == 0
    assert witnesses[0].checked == tally.steps[StepMode.PLAN]
    return {"plans": witnesses[0].checked, "preempted": tally.preemptions.total(), "paused": tally.pauses.total()}


@ASYNC
@RUNNER
@BLOCKS
@DRAFTS
def test_no_plan_changes_an_output(async_mode, v2_runner, blocks, drafts):
    world = World(async_mode, blocks, drafts=drafts, v2_runner=v2_runner)
    total = {"plans": 0, "preempted": 0, "paused": 0}
    for seed in range(SEEDS):
        for name, count in run(world, seed).items():
            total[name] += count
    assert total["plans"] >= 100 * SEEDS
    assert min(total.values()) >= 10 * SEEDS, total


@ASYNC
def test_nor_without_prefix_caching_under_priorities_and_with_a_watermark(async_mode):
    for seed in range(SEEDS):
        world = World(
            async_mode,
            num_blocks=120,
            policy="priority",
            prefix_caching=seed % 2 == 0,
            watermark=(0.0, 0.05, 0.1)[seed % 3],
        )
        run(world, seed)


@ASYNC
def test_nor_when_half_of_the_running_requests_are_parked_and_dropped(async_mode):
    for seed in range(SEEDS):
        run(World(async_mode, num_blocks=120, v2_runner=seed % 2 == 0), seed, Rates(park=0.5, drop=0.3, unpark=0.2))
