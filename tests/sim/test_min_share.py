"""Offline work gets its minimum share while more online work comes than the engine can serve; without one nothing."""

from functools import cache

import pytest

from vllm_hybrid.sim.device import load_device
from vllm_hybrid.sim.run import Contender, EngineSettings, SimRequest, simulate

pytestmark = pytest.mark.oracle

DEVICE = load_device("a100_llama31_8b_bf16")
SETTINGS = EngineSettings(max_seqs=16, step_tokens=512, pool_tokens=24_000, max_model_len=4_096)
SHARE, END_S = 0.05, 30.0


@cache
def tokens_of_lanes(share: float) -> tuple[int, int]:
    """Prompt and output tokens of online and of offline requests in an overload."""
    online = [SimRequest(f"on{i}", i / 12, 1_200, 60) for i in range(round(12 * END_S))]
    offline = [SimRequest(f"off{i}", 0.0, 1_500, 60, "batch", "offline") for i in range(60)]
    hybrid = {"slo": {"online": {"ttft_s": 2.0, "tbt_s": 0.1}}, "lanes": {"offline": {"min_share": share}}}
    record = simulate(online + offline, Contender("hybrid", hybrid=hybrid), DEVICE, SETTINGS, until_s=END_S)
    assert record.policy_errors == 0
    tokens = [0, 0]
    for one in record.requests:
        if one.token_s:
            tokens[one.request.lane == "offline"] += one.request.prompt_tokens + len(one.token_s)
    return tokens[0], tokens[1]


def test_the_share_holds_in_an_overload():
    online, offline = tokens_of_lanes(SHARE)
    assert 0.9 * SHARE <= offline / (online + offline) <= 1.5 * SHARE


def test_without_a_share_online_work_takes_everything():
    online, offline = tokens_of_lanes(0.0)
    assert offline < 0.5 * SHARE * (online + offline)


def test_the_share_costs_online_work_no_more_than_that():
    alone, shared = tokens_of_lanes(0.0)[0], tokens_of_lanes(SHARE)[0]
    assert shared >= (1 - 2 * SHARE) * alone
