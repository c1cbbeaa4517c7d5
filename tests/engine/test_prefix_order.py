"""Offline requests in groups that share a prefix: fewer prompt tokens are computed than in order of arrival.

The answers are the same.
"""

import random

import pytest

from tests.engine.engines import BLOCK_SIZE, Call, check_clean, running_engine, scheduler_of, serve
from vllm_hybrid.policy.request import Lane

pytestmark = pytest.mark.e2e

GROUPS, MEMBERS, PREFIX_BLOCKS = 8, 4, 5
POOL_BLOCKS = 20  # of the 40 that the prefixes alone would take


def load() -> list[Call]:
    rng = random.Random(4)
    prefixes = [[rng.randrange(10, 1000) for _ in range(PREFIX_BLOCKS * BLOCK_SIZE)] for _ in range(GROUPS)]
    order = [group for group in range(GROUPS) for _ in range(MEMBERS)]
    rng.shuffle(order)
    own = [[rng.randrange(10, 1000) for _ in range(20)] for _ in order]
    return [
        Call(0, f"r{i}", tuple(prefixes[group] + own[i]), 8, "offline", sampling={"ignore_eos": True})
        for i, group in enumerate(order)
    ]


def test_more_of_the_prompts_is_found_in_the_cache(tiny_opt):
    answers, computed = {}, {}
    for order in ("arrival", "prefix"):
        hybrid = {"strict": True, "lanes": {"offline": {"order": order}}}
        scheduler = {"scheduler_cls": "vllm_hybrid.Scheduler", "additional_config": {"hybrid": hybrid}}
        with running_engine(
            tiny_opt, scheduler, num_gpu_blocks_override=POOL_BLOCKS, max_num_seqs=2, max_model_len=512
        ) as engine:
            answers[order] = serve(engine, load())
            computed[order] = scheduler_of(engine).ledger.drain().prompt_tokens[Lane.OFFLINE]
            check_clean(engine)
    assert answers["prefix"] == answers["arrival"]
    assert computed["prefix"] < 0.6 * computed["arrival"], computed
