"""Who waits for a block, and who loses its memory, where online decodes find too few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.unit.policy.world import Pool, decode, step_view
from vllm_hybrid.policy.pace import Pace
from vllm_hybrid.policy.plan import StepPlan, check_plan
from vllm_hybrid.policy.request import RequestView

NOW_S = 100.0


def full(output_tokens: int, waited_s: float = 0.0, **fields: Any) -> RequestView:
    """A decode that needs a block for its next token; its last one came `waited_s` ago."""
    return decode(context_tokens=64, output_tokens=output_tokens, last_token_s=NOW_S - waited_s, **fields)


def settled(decodes: Sequence[RequestView], free: int, tbt_s: float = 1.0) -> StepPlan:
    view = step_view(list(decodes), pool=Pool(total=200, free=free), now_s=NOW_S, growth_blocks_free=free)
    plan = StepPlan(token_budget=16, order=list(decodes))
    Pace(view, plan, tbt_s, step_s=0.02).settle(decodes, [])
    check_plan(view, plan)
    return plan


def test_with_blocks_enough_everybody_runs() -> None:
    plan = settled([full(5), full(9)], free=50)
    assert not plan.paused and not plan.preempt


def test_who_has_generated_most_goes_on_and_the_others_wait() -> None:
    young, old = full(5), full(50)
    plan = settled([young, old], free=1)
    assert plan.paused == [young] and not plan.preempt


def test_everybody_leaves_a_block_to_each_before_it() -> None:
    decodes = [full(50), full(40), full(30)]
    assert settled(decodes, free=3).paused == [decodes[2]]


def test_who_can_wait_no_longer_takes_the_memory_of_a_late_request() -> None:
    due, late, other = full(5, waited_s=0.95), full(50, late=True), full(60)
    plan = settled([due, late, other], free=0)
    assert plan.preempt == [late]
    assert due not in plan.paused


def test_late_requests_wait_longer() -> None:
    late, other = full(5, waited_s=1.5, late=True), full(60)
    assert late in settled([late, other], free=1).paused
    late.last_token_s = NOW_S - 3.5
    assert late not in settled([late, other], free=1).paused


def test_somebody_always_runs() -> None:
    decodes = [full(50), full(40)]
    plan = settled(decodes, free=0)
    assert plan.paused == [] and plan.preempt == [decodes[1]]
