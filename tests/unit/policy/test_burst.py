"""Offline work leaves what online work held lately and does not hold now, and forgets it in time."""

from tests.unit.policy.world import BLOCK_TOKENS, decode, prefill
from vllm_hybrid.policy.burst import Burst


def held(count: int) -> list:
    return [decode(context_tokens=10 * BLOCK_TOKENS) for _ in range(count)]


def test_nothing_is_kept_where_nobody_comes():
    assert Burst().reserve_blocks([], 0.0, BLOCK_TOKENS) == 0


def test_what_a_burst_held_is_kept_free_after_it_and_fades():
    burst = Burst()
    assert burst.reserve_blocks(held(8), 0.0, BLOCK_TOKENS) == 0
    assert burst.reserve_blocks(held(3), 1.0, BLOCK_TOKENS) in (49, 50)
    assert burst.reserve_blocks([], 60.0, BLOCK_TOKENS) == 30
    assert burst.reserve_blocks([], 600.0, BLOCK_TOKENS) == 1


def test_a_prompt_under_computation_counts_whole():
    burst = Burst()
    burst.reserve_blocks([prefill(prompt_tokens=20 * BLOCK_TOKENS, done_tokens=BLOCK_TOKENS)], 0.0, BLOCK_TOKENS)
    assert burst.reserve_blocks([], 0.0, BLOCK_TOKENS) == 20
