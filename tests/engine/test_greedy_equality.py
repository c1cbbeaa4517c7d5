"""On the real engine, in float32, each request of a mixed load gets exactly the tokens that stock vLLM gives it."""

import random

import pytest

from tests.engine.engines import HYBRID, check_clean, mixed_load, running_engine, scheduler_of, serve
from tests.oracle.chaos import ChaosPlanner, ChaosSyncScheduler
from vllm_hybrid.engine.tally import StepMode
from vllm_hybrid.policy.request import Lane

pytestmark = pytest.mark.e2e

LOAD = mixed_load(1)
SMALL_POOL = {"num_gpu_blocks_override": 40}
TINY_POOL = {"num_gpu_blocks_override": 22, "max_model_len": 640, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def stock(tiny_opt) -> dict:
    """What stock vLLM answers, with all the room it could want."""
    with running_engine(tiny_opt) as engine:
        outputs = serve(engine, LOAD)
    lengths = {call.request_id: call.max_tokens for call in LOAD}
    assert {request_id: len(samples[0]) for request_id, samples in outputs.items()} == lengths
    # The oracle is sharp only if tokens vary.
    assert len({tuple(samples[0][:4]) for samples in outputs.values()}) == len(LOAD)
    return outputs


@pytest.mark.parametrize("room", [{}, SMALL_POOL, TINY_POOL], ids=["roomy", "small-pool", "tiny-pool"])
def test_hybrid_answers_as_stock(tiny_opt, stock, room):
    with running_engine(tiny_opt, HYBRID, **room) as engine:
        assert serve(engine, LOAD) == stock
        check_clean(engine)
        tally = scheduler_of(engine).tally
        assert tally.steps[StepMode.PLAN] > 20
        if room:
            assert tally.preemptions[Lane.OFFLINE] > 0


def test_hybrid_answers_as_stock_under_a_latency_target(tiny_opt, stock):
    slo = {"online": {"ttft_s": 0.05, "tbt_s": 0.005}}  # tight: offline work pauses and is cut into chunks
    hybrid = HYBRID | {"additional_config": {"hybrid": {"strict": True, "slo": slo}}}
    with running_engine(tiny_opt, hybrid, **SMALL_POOL) as engine:
        assert serve(engine, LOAD) == stock
        check_clean(engine)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_legal_plans_answer_as_stock(tiny_opt, stock, seed):
    with running_engine(tiny_opt, HYBRID | {"scheduler_cls": ChaosSyncScheduler}, **SMALL_POOL) as engine:
        scheduler = scheduler_of(engine)
        scheduler.dice = random.Random(seed)
        scheduler.planner = ChaosPlanner(scheduler.dice)
        assert serve(engine, LOAD) == stock
        check_clean(engine)
        assert scheduler.tally.preemptions[Lane.OFFLINE] > 0
