"""The whole policy, one rule at a time, each in the smallest engine state that shows it."""

import math

import pytest

from tests.unit.policy.world import (
    BLOCK_TOKENS,
    OFFLINE,
    Pool,
    admissions,
    decode,
    planner,
    prefill,
    request,
    step_view,
    trained,
    waiting,
    work_of,
)
from vllm_hybrid.policy.compose import MIN_PREFILL_TOKENS
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.plan import StepPlan, check_plan
from vllm_hybrid.policy.request import RequestView

MACHINE = {"decode_s": 1e-3, "prefill_token_s": 1e-4}


def plan_of(running=(), queue=None, pool=None, slo=None, predictor=None, parked=(), **view) -> StepPlan:
    state = step_view(list(running), queue, pool or Pool(free=0), list(parked), **view)
    plan = planner(slo, predictor=predictor).plan(state)
    check_plan(state, plan)
    return plan


def due_in(slack_s: float) -> RequestView:
    """An online decode whose next token is due `slack_s` from now."""
    return decode(deadline_s=100.0 + slack_s, dated_tokens=1)


TARGETS = {"ttft_s": 1.0, "tbt_s": 0.1}


def test_without_a_target_only_the_token_budget_binds():
    offline = prefill("b", OFFLINE, 5000)
    plan = plan_of([decode(), offline], max_tokens=512)
    assert plan.caps == {offline.request_id: 511}
    assert plan.token_budget == 512


def test_a_short_online_prompt_leaves_the_rest_of_the_step_to_offline_work():
    offline = [decode("b", OFFLINE) for _ in range(4)]
    plan = plan_of([decode(), *offline], waiting([request(prompt_tokens=10)]), Pool(free=100), max_tokens=512)
    assert plan.paused == []


def test_online_work_that_cannot_come_in_does_not_stop_offline_decodes():
    offline = [decode("b", OFFLINE, disturbed_s=99.0) for _ in range(4)]
    plan = plan_of([decode(), *offline], waiting([request(prompt_tokens=160)]), Pool(free=5), max_tokens=512)
    assert plan.paused == []


def test_an_online_prefill_uses_the_slack_up_and_offline_work_gets_nothing_of_it():
    online, offline = prefill(prompt_tokens=5000), prefill("b", OFFLINE, 5000)
    plan = plan_of([due_in(0.101), online, offline], predictor=trained(**MACHINE), slo=TARGETS, max_tokens=8192)
    assert plan.caps[online.request_id] == pytest.approx(1000, abs=1)
    assert plan.paused == [offline]


def test_a_deep_prefill_is_cut_by_what_it_costs_where_it_stands():
    machine = trained(pair_s=1e-8, **MACHINE)
    deep = prefill(prompt_tokens=120_000, done_tokens=100_000)
    plan = plan_of([due_in(0.101), deep], predictor=machine, slo=TARGETS, max_tokens=8192)
    assert machine.prefill_seconds(plan.caps[deep.request_id], 100_000) <= 0.1


def test_an_online_queue_moves_even_where_the_slack_is_used_up():
    online = prefill(prompt_tokens=5000)
    plan = plan_of([due_in(-3), online], predictor=trained(**MACHINE), slo=TARGETS)
    assert plan.caps == {online.request_id: MIN_PREFILL_TOKENS}


def test_offline_decodes_pause_when_the_next_online_token_is_near():
    offline = [decode("b", OFFLINE) for _ in range(10)]
    plan = plan_of([due_in(0.0055), *offline], predictor=trained(**MACHINE), slo=TARGETS)
    assert len(plan.paused) == 6
    assert plan.order[-6:] == plan.paused


def test_the_margin_of_the_predictor_is_kept():
    offline = [decode("b", OFFLINE) for _ in range(10)]
    plan = plan_of([due_in(0.011), *offline], predictor=trained(**MACHINE, margin=1.0), slo=TARGETS)
    assert len(plan.paused) == 6


def test_the_time_of_steps_under_way_is_not_given_out_again():
    offline = [decode("b", OFFLINE) for _ in range(10)]
    plan = plan_of([due_in(0.0255), *offline], predictor=trained(**MACHINE), slo=TARGETS, pending_s=0.02)
    assert len(plan.paused) == 6


@pytest.mark.parametrize("beside", [[], [decode()]], ids=["alone", "beside a decode without a deadline"])
def test_the_next_arrival_does_not_wait_longer_than_an_idle_step(beside):
    offline = prefill("b", OFFLINE, 8000)
    slo = {"ttft_s": 0.2, "idle_step_s": 0.02}
    plan = plan_of([*beside, offline], predictor=trained(**MACHINE), slo=slo, max_tokens=8192)
    assert plan.caps[offline.request_id] <= 200


@pytest.mark.parametrize("beside", [due_in(5.0), prefill(prompt_tokens=100, arrival_s=100.0)], ids=["decode", "prompt"])
def test_an_idle_step_that_the_settings_name_is_kept_beside_online_work_too(beside):
    offline = prefill("b", OFFLINE, 8000)
    slo = {"ttft_s": 10.0, "tbt_s": 5.0}
    long, short = (
        plan_of([beside, offline], predictor=trained(**MACHINE), slo={**slo, **more}, max_tokens=8192)
        for more in ({}, {"idle_step_s": 0.03})
    )
    assert offline.request_id not in long.caps
    assert short.caps[offline.request_id] <= 300


def test_offline_work_waits_for_an_online_prompt_whose_first_token_is_due():
    online, offline = prefill(prompt_tokens=400, arrival_s=99.03), decode("b", OFFLINE)
    plan = plan_of([online, offline], predictor=trained(**MACHINE), slo=TARGETS)
    assert plan.paused == [offline]


def test_room_is_made_for_the_prompts_of_this_step_only():
    offline = [decode("b", OFFLINE, 60 * BLOCK_TOKENS) for _ in range(8)]
    heads = [request(f"c{i}", prompt_tokens=60 * BLOCK_TOKENS, arrival_s=100.0) for i in range(8)]
    running = [due_in(0.05), *offline]
    plan = plan_of(running, waiting(heads), predictor=trained(**MACHINE), slo=TARGETS, max_tokens=8192, slots=64)
    assert len(plan.preempt) == 2  # one for the prompt, one for the block that the online decode may need


def test_an_online_arrival_takes_a_slot_and_leaves_its_owner_the_memory():
    offline = [decode("b", OFFLINE, 160), decode("b", OFFLINE, 320)]
    plan = plan_of(offline, waiting([request()]), Pool(free=100), slots=2)
    assert (plan.park, plan.preempt) == ([offline[0]], [])


def test_no_room_is_made_for_a_head_that_the_engine_would_pass_over():
    blocked, behind = request("a", prompt_tokens=160), request("b", prompt_tokens=32)
    offline = [decode("b", OFFLINE, 160) for _ in range(2)]
    assert plan_of(offline, waiting([blocked]), Pool(free=0, blocked={blocked})).preempt == []
    assert plan_of(offline, waiting([blocked, behind]), Pool(free=0, blocked={blocked})).preempt == [offline[1]]


def test_a_head_that_the_engine_would_pass_over_holds_no_offline_work_up():
    blocked = request(prompt_tokens=100)
    offline = [decode("b", OFFLINE) for _ in range(4)]
    pool = Pool(free=100, blocked={blocked})
    assert plan_of([decode(), *offline], waiting([blocked]), pool).paused == []
    parked = decode("b", OFFLINE, 160)
    assert plan_of([decode()], waiting([blocked]), pool, parked=[parked]).unpark == [parked]


def test_a_head_for_which_there_is_just_enough_room_comes_in():
    head = request(prompt_tokens=10 * BLOCK_TOKENS)
    pool = Pool(free=12)
    running = [due_in(1), prefill(), *(decode("b", OFFLINE) for _ in range(8))]
    queue = waiting([head])
    plan = plan_of(running, queue, pool)
    assert plan.preempt == []
    assert list(admissions(pool, queue, plan.candidates)) == [head]


def test_offline_work_goes_on_beside_a_head_that_the_engine_refuses():
    """A LoRA adapter may find no slot while those of paused requests hold them: somebody must go on, or it stays so."""
    head = request(prompt_tokens=600)
    offline = [decode("b", OFFLINE) for _ in range(3)]
    plan = plan_of(offline, waiting([head]), Pool(free=100, barred={head}))
    assert len(plan.paused) < 3


def test_the_parked_come_back_when_no_online_request_waits():
    parked = decode("b", OFFLINE, 160, disturbed_s=99.0)
    assert plan_of([decode()], parked=[parked], pool=Pool(free=100)).unpark == [parked]
    stuck = waiting([request(prompt_tokens=160)])
    assert plan_of([decode()], stuck, Pool(free=5), parked=[parked], slots=4).unpark == []


def test_a_parked_request_that_the_engine_would_refuse_stays_parked():
    parked = decode("b", OFFLINE, 160)
    assert plan_of([decode()], parked=[parked], pool=Pool(free=100, barred={parked})).unpark == []


def test_parked_requests_that_hold_the_whole_pool_let_go_one_at_a_time():
    parked = [decode("b", OFFLINE, 320), decode("b", OFFLINE, 160)]
    plan = plan_of([], parked=parked, pool=Pool(total=30, free=0))
    assert plan.drop == [parked[1]]


def test_who_gives_way_first_is_paused_then_runs_offline_then_is_online():
    """The last in the order is the first to lose its blocks inside the step."""
    decoding, first, second = due_in(0.2), prefill(prompt_tokens=5000), prefill(prompt_tokens=5000)
    offline = [decode("b", OFFLINE), prefill("b", OFFLINE, 3000)]
    plan = plan_of([*offline, second, first, decoding], predictor=trained(**MACHINE), slo=TARGETS, max_tokens=64)
    lanes = [v.lane for v in plan.order]
    assert lanes == sorted(lanes)
    running = [v in plan.paused for v in plan.order if v.lane is OFFLINE]
    assert running == sorted(running)


def test_who_lost_its_memory_lately_is_not_the_next_to_lose_it():
    offline = [decode("b", OFFLINE, disturbed_s=99.0 - i if i else -math.inf) for i in range(3)]
    plan = plan_of([due_in(-1), *offline], predictor=trained(**MACHINE), slo=TARGETS)
    assert plan.order[1:] == plan.paused == [offline[1], offline[2], offline[0]]


def test_a_prompt_under_way_counts_before_it_is_billed():
    pool, queue = Pool(), waiting([request("a"), request("b")])
    plan = plan_of([prefill("a", prompt_tokens=300)], queue, pool)
    assert [v.client for v in admissions(pool, queue, plan.candidates)] == ["b", "a"]


# -- using a plan again ------------------------------------------------------------------------------------------------
def reusable(slo, predictor, slack_s, steps=1) -> bool:
    running = [due_in(slack_s), decode("b", OFFLINE)]
    policy = planner(slo, predictor=predictor)
    policy.plan(step_view(running))
    return policy.reusable(work_of(running), 100.0, 0.0, 100.0, steps)


def test_without_a_target_a_plan_is_good_until_somebody_comes_or_goes():
    assert reusable({}, StepTimePredictor(), -5)


def test_a_plan_is_used_again_only_while_the_step_ends_before_the_next_deadline():
    machine = trained(**MACHINE)
    assert reusable(TARGETS, machine, 0.0, steps=1)
    assert not reusable(TARGETS, machine, -0.1, steps=1)
    assert reusable(TARGETS, machine, -0.1, steps=2)


def test_a_plan_made_by_an_untrained_predictor_is_not_used_again():
    assert not reusable(TARGETS, StepTimePredictor(), 10)
    assert not reusable({"tbt_s": 0.1}, StepTimePredictor(), 10)


def test_without_deadlines_between_tokens_the_idle_limit_decides():
    assert reusable({"ttft_s": 1.0}, trained(constant_s=0.05), 10)
    assert not reusable({"ttft_s": 1.0}, trained(constant_s=0.15), 10)
