"""With one client, no offline work and no SLO our schedulers are vLLM's: every field of every step is the same."""

import random
from dataclasses import replace

import pytest

from tests.oracle.ours import HYBRID
from tests.oracle.recording import Recorder, first_difference
from tests.oracle.workload import Shape, draw_load, play
from vllm_hybrid.sim.modelfree import STOCK, World

pytestmark = pytest.mark.oracle

WORKLOADS = 110  # per mode: the two modes make more than 200 workloads and 20,000 steps
MIN_STEPS = 10_000
ONE_CLIENT = ((), (("client", "acme"),), (("lane", "online"), ("client", "acme")))


def draw_world(rng: random.Random, async_mode: bool) -> World:
    policy = rng.choice(("fcfs", "fcfs", "priority"))
    caching = rng.random() < 0.75
    # With priorities, prefix caching and a tight pool stock computes wrong tokens (test_priority_bug): not our model.
    roomy = policy == "priority" and caching
    return World(
        async_mode,
        num_blocks=2000 if roomy else rng.choice((48, 64, 120, 400)),
        max_seqs=rng.choice((4, 8, 16)),
        step_tokens=rng.choice((32, 96, 256)),
        drafts=rng.choice((0, 0, 3)),
        policy=policy,
        prefix_caching=caching,
        watermark=rng.choice((0.0, 0.0, 0.05)),
        long_prefill_tokens=rng.choice((0, 0, 24)),
        v2_runner=rng.random() < 0.3,
    )


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
def test_one_client_gets_stock_vllm(async_mode):
    steps = preempted = 0
    for seed in range(WORKLOADS):
        rng = random.Random(seed)
        world = draw_world(rng, async_mode)
        shape = Shape(
            jobs=24,
            prompt_tokens=rng.choice((60, 400)),
            output_tokens=rng.choice((60, 120)),
            arrival_steps=rng.choice((1, 60)),
            priorities=rng.choice((1, 4)),
        )
        identity = rng.choice(ONE_CLIENT)
        jobs = [replace(job, identity=identity) for job in draw_load(seed, shape)]
        theirs, ours = Recorder(), Recorder()
        stock = play(STOCK, world, jobs, seed, shape.abort_rate, on_schedule=theirs)
        hybrid = play(HYBRID, world, jobs, seed, shape.abort_rate, on_schedule=ours)
        for n, (a, b) in enumerate(zip(theirs.steps, ours.steps)):
            assert first_difference(a, b) is None, f"seed {seed}, {world}, step {n}: {first_difference(a, b)}"
        assert len(theirs.steps) == len(ours.steps)
        assert stock.loop.outputs == hybrid.loop.outputs and stock.aborted == hybrid.aborted
        steps += len(ours.steps)
        preempted += sum(len(step["preempted_req_ids"]) for step in ours.steps)
    assert steps >= MIN_STEPS
    assert preempted >= 100  # the loads are tight enough to mean something
