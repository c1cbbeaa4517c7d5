"""Who steps back for whom, and when nobody does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import (
    OFFLINE,
    ONLINE,
    Pool,
    blocks_of,
    decode,
    examples,
    plain_counters,
    planner,
    request,
    step_view,
    trained,
    waiting,
)
from vllm_hybrid.policy.exchange import Exchange, without, worth
from vllm_hybrid.policy.expected import ExpectedGate
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.gate import ExpectingPlanner
from vllm_hybrid.policy.plan import StepView, check_plan
from vllm_hybrid.policy.request import RequestView
from vllm_hybrid.policy.survival import Survival
from vllm_hybrid.policy.value import Urgency
from vllm_hybrid.policy.waiting import WaitingRequests

NOW_S = 100.0


def taught(lengths: Sequence[int] = (*(50,) * 200, *(2000,) * 200)) -> Survival:
    """Of a client half of whose answers are short and half very long."""
    survival = Survival()
    for tokens in lengths:
        survival.observe((ONLINE, "a"), tokens)
    survival.refresh([])
    return survival


def going(context_tokens: int, output_tokens: int, **fields: Any) -> RequestView:
    own = {"output_tokens": output_tokens, "dated_tokens": output_tokens, "last_token_s": NOW_S - 0.02}
    return decode(context_tokens=context_tokens, max_output_tokens=4096, **(own | fields))


def fresh(prompt_tokens: int = 32, **fields: Any) -> RequestView:
    own = {"arrival_s": NOW_S - 0.7, "max_output_tokens": 4096}
    return request(prompt_tokens=prompt_tokens, **(own | fields))


def full(running: Sequence[RequestView], heads: Sequence[RequestView], **fields: Any) -> StepView:
    """An engine whose pool is taken by `running`, but for a few blocks."""
    held = sum(blocks_of(v.computed_tokens) for v in running)
    pool = Pool(total=held + len(running) + 2, free=len(running) + 1)
    return step_view(running, lined_up(heads), pool, slots=64, now_s=NOW_S, **fields)


def lined_up(heads: Sequence[RequestView], counters: VirtualCounters | None = None) -> WaitingRequests:
    queue = waiting((), counters)
    queue.urgency = Urgency(ttft_s=1.0, now_s=NOW_S)
    for view in heads:
        queue.add(view)
    return queue


def settled(view: StepView, survival: Survival | None = None) -> list[RequestView]:
    survival = survival or taught()
    gate = ExpectedGate(view, survival, 0.25)
    return Exchange(survival, 1.0).settle(view, lambda: gate)


def test_a_small_newcomer_is_worth_more_than_one_that_goes_on_and_on() -> None:
    new, short, long = worth(taught(), [fresh(), going(80, 20), going(600, 300)])
    assert new > 2 * long and short > 2 * long


def test_the_one_worth_least_steps_back_and_is_marked() -> None:
    running = [going(600, 300), going(90, 30), going(400, 250)]
    assert settled(full(running, [fresh()]))[0] is running[0]
    assert running[0].late and running[0].stands_back_s > NOW_S + 20.0
    assert not running[1].late


def test_who_has_missed_its_target_anyhow_steps_back_first() -> None:
    running = [going(600, 300), going(90, 30, late=True)]
    assert settled(full(running, [fresh()]))[0] is running[1]


def test_nobody_steps_back_for_nothing() -> None:
    running = [going(600, 300), going(400, 250)]
    assert settled(full(running, [])) == []
    assert settled(full(running, [fresh(late=True)])) == []  # cannot be in time
    short = [going(90, 30), going(80, 20)]
    assert settled(full(short, [fresh(prompt_tokens=480)])) == []  # worth no more than they are
    assert settled(full(running, [fresh(arrival_s=NOW_S - 0.3)])) == []  # can wait
    roomy = step_view(running, lined_up([fresh()]), Pool(total=1000, free=900), slots=64, now_s=NOW_S)
    assert settled(roomy) == []


def test_offline_work_gives_way_before_anybody_online() -> None:
    running = [going(600, 300), going(64, 5, lane=OFFLINE)]
    assert settled(full(running, [fresh()])) == []


def test_not_for_a_client_that_was_served_more_by_the_allowed_gap() -> None:
    counters = plain_counters()
    counters.values[ONLINE, "b"] = 5000.0
    running = [going(600, 300), going(600, 310)]
    view = full(running, [])
    view.waiting = lined_up([fresh(client="b")], counters)
    view.waiting.allowed_gap = 1000.0
    assert settled(view) == []
    view.waiting.allowed_gap = 6000.0
    assert settled(view)


def test_a_target_of_few_steps_promises_a_steady_flow() -> None:
    for step_s, steps_back in ((0.03, True), (0.1, False)):
        predictor = trained(constant_s=step_s)
        inner = planner({"ttft_s": 1.0, "tbt_s": 1.0, "gap": "strict"}, predictor=predictor)
        running = [going(600, 300), going(400, 250), going(90, 30)]
        view = full(running, [fresh()])
        plan = ExpectingPlanner(inner, taught(), predictor, tbt_s=1.0).plan(view)
        check_plan(view, plan)
        assert (running[0] in plan.preempt) is steps_back


def test_it_comes_back_behind_newcomers_until_it_has_stood_back_long_enough() -> None:
    survival = taught()
    back = fresh(prompt_tokens=900, started=True, stands_back_s=NOW_S + 1.0)
    view = full([going(600, 300)], [back])
    assert not ExpectedGate(view, survival, 0.25).fits(back)
    back.stands_back_s = NOW_S
    assert ExpectedGate(view, survival, 0.25).fits(back)


@examples(150)
@given(
    running=st.lists(st.tuples(st.integers(17, 900), st.integers(1, 600), st.booleans()), min_size=1, max_size=12),
    prompts=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    spare=st.integers(0, 40),
)
def test_memory_is_given_only_to_those_who_come_in(
    running: list[tuple[int, int, bool]], prompts: list[int], spare: int
) -> None:
    views = [going(tokens + made, made, late=late) for tokens, made, late in running]
    view = full(views, [fresh(tokens) for tokens in prompts])
    view.free_blocks += spare
    survival = taught()
    gate = ExpectedGate(view, survival, 0.25)
    gone = Exchange(survival, 1.0).settle(view, lambda: gate)
    assert len(set(gone)) == len(gone) and set(gone) <= set(views)
    if gone:
        left = without(view, gone)
        assert len(left.running) == len(views) - len(gone)
        first = view.waiting.head()
        assert first is not None and gate.fits(first)
        assert left.blocks_needed(first) <= left.free_blocks - len(left.running)
