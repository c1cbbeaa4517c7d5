"""On the real engine stock vLLM's priority policy returns wrong tokens after an in-step preemption; ours never does.

The cases are those of `docs/upstream/priority-prefix-cache.md`: A is long and yields to B and C, which come a step
apart and are more important. `tests/oracle/test_priority_bug.py` has 616 of them without a model.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.engines import HYBRID, STOCK, Call, running_engine, scheduler_of, serve

pytestmark = pytest.mark.e2e

REPRODUCTION = Path(__file__).parents[2] / "docs" / "upstream" / "priority_prefix_cache_repro.py"
SETTINGS = {
    "scheduling_policy": "priority",
    "num_gpu_blocks_override": 19,
    "max_num_batched_tokens": 160,
    "long_prefill_token_threshold": 96,
    "max_model_len": 448,
}
CASES = [(seed, b, c) for seed in range(3) for b, c in ((4, 130), (10, 130), (31, 100), (40, 100))]


def calls_of(seed: int, b_tokens: int, c_tokens: int) -> list[Call]:
    rng = random.Random(seed)

    def prompt(tokens: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 1000) for _ in range(tokens))

    return [
        Call(0, "A", prompt(400), 8, "offline", "a", priority=5),
        Call(1, "B", prompt(b_tokens), 40, "online", "b"),
        Call(2, "C", prompt(c_tokens), 12, "online", "c"),
    ]


def wrong_answers(model: str, scheduler: dict, one_client: bool) -> list[list[str]]:
    """Per case, who got other tokens than when served alone."""
    wrong = []
    with running_engine(model, scheduler, **SETTINGS) as engine:
        for case in CASES:
            calls = calls_of(*case)
            if one_client:
                calls = [Call(c.step, c.request_id, c.prompt, c.max_tokens, priority=c.priority) for c in calls]
            alone = {}
            for call in calls:
                scheduler_of(engine).reset_prefix_cache()
                alone |= serve(engine, [call])
            scheduler_of(engine).reset_prefix_cache()
            together = serve(engine, calls)
            wrong.append([request_id for request_id in alone if alone[request_id] != together[request_id]])
    return wrong


def test_stock_is_wrong_in_every_case(tiny_opt):
    assert wrong_answers(tiny_opt, STOCK, one_client=True) == [["A"]] * len(CASES)


@pytest.mark.parametrize("one_client", [True, False], ids=["one-client", "two-lanes"])
def test_ours_is_right_in_every_case(tiny_opt, one_client):
    assert wrong_answers(tiny_opt, HYBRID, one_client) == [[]] * len(CASES)


def test_the_reproduction_for_upstream_shows_it_on_stock_vllm():
    environment = os.environ | {"VLLM_PLUGINS": "", "OMP_NUM_THREADS": "1"}  # no plugin: not even ours is loaded
    done = subprocess.run([sys.executable, str(REPRODUCTION)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-4000:]
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["DIFFERENT", "equal", "equal"]
