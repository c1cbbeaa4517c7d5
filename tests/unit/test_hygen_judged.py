"""No policy can do more offline work than the clairvoyant of `benchmarks.lanes`."""

import pytest

from benchmarks.papers.hygen_judged import most_offline_tokens
from benchmarks.papers.hygen_search import DEVICE, STEP_TOKENS
from vllm_hybrid.sim.device import load_device

GPU = load_device(DEVICE)
ALONE = [(0.02, 4)] * 500  # ten seconds of steps with four online decodes


def test_an_idle_gpu_computes_prompts():
    assert most_offline_tokens([], 10.0, 0.0, GPU) == STEP_TOKENS / GPU.step_seconds([(STEP_TOKENS, 0)], [])


def test_what_the_weights_hide_is_free_and_the_rest_costs_online_time():
    nothing, some, any_amount = (most_offline_tokens(ALONE, 10.0, s, GPU) for s in (0.0, 4.0, float("inf")))
    assert 0 < nothing < some < any_amount
    assert any_amount == pytest.approx(50 * (STEP_TOKENS - 4))


def test_few_online_decodes_are_made_to_wait_first():
    mixed = [(0.02, 1)] * 250 + [(0.02, 40)] * 250
    assert most_offline_tokens(mixed, 10.0, 2.0, GPU) > most_offline_tokens([(0.02, 40)] * 500, 10.0, 2.0, GPU)
