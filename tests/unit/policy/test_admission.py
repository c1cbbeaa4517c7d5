"""Admission: who is offered, in which order, and for how long a request that does not fit may be passed by others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import (
    BLOCK_TOKENS,
    OFFLINE,
    ONLINE,
    Pool,
    admissions,
    decode,
    examples,
    plain_counters,
    request,
    step_view,
    trained,
    waiting,
)
from vllm_hybrid.policy.admission import MAX_BYPASSES, Admission
from vllm_hybrid.policy.offline import Budget
from vllm_hybrid.policy.plan import StepPlan

INTERVAL_S = 5.0
RUNS = decode("runs")


class Door:
    """One step's admission into a pool; `take` lets the engine admit what is offered."""

    def __init__(self, views, pool=None, online=None, offline=None, running=(RUNS,), reserve=0, predictor=None, **view):
        self.pool = pool or Pool()
        self.queue = views if hasattr(views, "walk") else waiting(views)
        self.view = step_view(list(running), self.queue, self.pool, **view)
        self.plan = StepPlan(self.view.max_tokens, list(running))
        self.admission = Admission(
            view=self.view,
            plan=self.plan,
            predictor=predictor or trained(prefill_token_s=1e-4),
            promised={},
            online=online or Budget(10_000),
            offline=Budget(10_000) if offline is None else offline,
            reserve_blocks=reserve,
            interval_s=INTERVAL_S,
            online_waits=False,
        )

    def take(self, slots: int = 10**6) -> list:
        candidates = iter(self.admission)
        admitted = list(admissions(self.pool, self.queue, candidates, slots))
        candidates.close()
        return admitted


def prompt_of(blocks: int) -> int:
    return blocks * BLOCK_TOKENS


def victim(client: str = "a", lane=OFFLINE, ago_s: float = 100.0, **fields):
    """A request that ran and lost its memory so many seconds ago (now is 100)."""
    return request(client, lane, started=True, disturbed_s=100.0 - ago_s, **fields)


# -- order -------------------------------------------------------------------------------------------------------------
def test_online_goes_before_offline_and_clients_take_turns():
    views = [request(c, lane) for c in "aab" for lane in (OFFLINE, ONLINE)]
    admitted = Door(views).take()
    assert [v.lane for v in admitted] == [ONLINE] * 3 + [OFFLINE] * 3
    assert [v.client for v in admitted] == ["a", "b", "a"] * 2


@pytest.mark.parametrize("lane", [ONLINE, OFFLINE])
def test_who_ran_before_comes_back_before_anything_new_whatever_its_counter(lane):
    counters = plain_counters()
    counters.charge((lane, "a"), 9_999, 0)
    back, new = victim("a", lane), request("b", lane)
    assert Door(waiting([new, back], counters)).take() == [back, new]


def test_the_earliest_victim_comes_back_first():
    late, early = victim("a", ago_s=20), victim("b", ago_s=30)
    assert Door([late, early]).take() == [early, late]


def test_a_victim_that_rests_is_not_offered_and_costs_its_client_nothing():
    counters = plain_counters()
    counters.charge((OFFLINE, "b"), 10, 0)
    resting, new_of_a, new_of_b = victim("a", ago_s=1, prompt_tokens=1000), request("a", OFFLINE), request("b", OFFLINE)
    assert Door(waiting([resting, new_of_a, new_of_b], counters)).take() == [new_of_a, new_of_b]


def test_a_victim_comes_back_early_if_nothing_else_would_run():
    resting, other = victim("a", ago_s=1), victim("b", ago_s=2)
    assert Door([resting, other], running=()).take() == [other]


def test_an_online_victim_needs_no_rest():
    back = victim("a", ONLINE, ago_s=0)
    assert Door([back]).take() == [back]


# -- memory ------------------------------------------------------------------------------------------------------------
def test_who_does_not_fit_closes_its_own_line_only():
    big, behind, other = request("a", prompt_tokens=prompt_of(11)), request("a"), request("b")
    assert Door([big, behind, other], Pool(free=10)).take() == [other]
    assert big.bypassed == 1


@pytest.mark.parametrize("lane", [ONLINE, OFFLINE])
def test_the_reserve_stays_free(lane):
    fits, does_not = request("a", lane, prompt_of(2)), request("b", lane, prompt_of(5))
    door = Door([does_not, fits], Pool(free=8, total=20), reserve=4)
    assert door.take() == [fits]
    assert door.pool.free == 6


def test_offline_leaves_a_share_of_the_pool_that_online_may_use():
    assert Door([request("a", OFFLINE, prompt_of(10))], Pool(free=50, total=1000)).take() == []
    assert len(Door([request("a", ONLINE, prompt_of(10))], Pool(free=50, total=1000)).take()) == 1


def test_nothing_is_reserved_from_a_machine_that_stands_still():
    alone = request("a", OFFLINE, prompt_of(1000))
    assert Door([alone], Pool(free=1000, watermark=50), running=(), reserve=10).take() == [alone]


def test_an_online_request_that_does_not_fit_stops_offline_admissions():
    views = [request("a", ONLINE, prompt_of(500)), request("b", ONLINE), request("c", OFFLINE)]
    assert [v.client for v in Door(views, Pool(free=400)).take()] == ["b"]


def test_an_online_request_that_waits_for_tokens_stops_offline_admissions():
    views = [request("a", ONLINE, 300), request("b", ONLINE, 300), request("c", OFFLINE)]
    assert [v.client for v in Door(views, online=Budget(300)).take()] == ["a"]


def test_only_a_few_misfits_are_looked_up_in_a_step():
    big = [request(f"c{i}", prompt_tokens=prompt_of(2000)) for i in range(50)]
    door = Door([*big, request("small")])
    asked = []
    ask = door.view.admissible_tokens
    door.view.admissible_tokens = lambda view, reserve: asked.append(view) or ask(view, reserve)
    assert door.take() == []
    assert len(asked) < 10


# -- how long a large request waits ------------------------------------------------------------------------------------
@given(st.integers(1, 40), st.integers(0, 3))
@examples(40)
def test_a_large_request_waits_for_a_bounded_number_of_smaller_ones(slots, prompt_blocks):
    """Small ones keep coming and keep leaving; the large one fits as soon as they are held back."""
    counters = plain_counters()
    large = request("large", prompt_tokens=prompt_of(90))
    queue = waiting([large], counters)
    passed = 0
    for _ in range(1_000):
        for _ in range(slots):
            queue.add(request("small", prompt_tokens=max(1, prompt_of(prompt_blocks))))
        held_back = large.bypassed >= MAX_BYPASSES
        admitted = Door(queue, Pool(total=100, free=100 if held_back else 50)).take(slots)
        if large in admitted:
            passed += admitted.index(large)
            break
        passed += len(admitted)
    assert large not in queue
    assert passed <= MAX_BYPASSES


def test_the_bound_holds_within_one_step_too():
    large = request("large", prompt_tokens=prompt_of(2000), bypassed=MAX_BYPASSES - 3)
    door = Door([large, *(request("small", prompt_tokens=1) for _ in range(300))])
    assert len(door.take()) == 3


def test_a_request_that_was_passed_often_enough_may_use_the_reserve():
    large = request("large", OFFLINE, prompt_of(90), bypassed=MAX_BYPASSES)
    door = Door([large, request("small", OFFLINE)], Pool(total=1000, free=95), reserve=20)
    assert door.take() == [large]


# -- tokens ------------------------------------------------------------------------------------------------------------
def test_prompts_are_cut_to_the_budget_and_the_rest_waits():
    first, second, third = (request(c, prompt_tokens=400) for c in "abc")
    door = Door([first, second, third], online=Budget(500))
    assert door.take() == [first, second]
    assert door.plan.caps == {second.request_id: 100}


def test_seconds_cut_a_prompt_too():
    door = Door([request("a", prompt_tokens=400)], online=Budget(500, seconds=0.0100001))
    door.take()
    assert list(door.plan.caps.values()) == [100]


def test_seconds_buy_less_behind_a_long_prefix_from_the_cache():
    view = request("a", prompt_tokens=51_000)
    pool = Pool(total=4000, free=4000, hit_tokens={view: 50_000})
    machine = trained(prefill_token_s=1e-4, pair_s=1e-8)
    door = Door([view], pool, online=Budget(2000, seconds=0.1), predictor=machine)
    door.take()
    assert machine.prefill_seconds(door.plan.caps[view.request_id], 50_000) == pytest.approx(0.1, rel=0.01)


def test_the_lanes_have_budgets_of_their_own():
    online, offline = request("a", ONLINE, 400), request("a", OFFLINE, 400)
    door = Door([online, offline], online=Budget(1000), offline=Budget(50))
    assert door.take() == [online, offline]
    assert door.plan.caps == {offline.request_id: 50}


def test_what_the_prefix_cache_holds_takes_no_budget():
    views = [request(c, prompt_tokens=400) for c in "abcde"]
    pool = Pool(hit_tokens=dict.fromkeys(views, 390))
    door = Door(views, pool, online=Budget(50))
    assert len(door.take()) == 5
    assert door.plan.caps == {}


def test_who_the_engine_passes_over_takes_no_budget_and_bypasses_nobody():
    """vLLM puts a request aside whose grammar is not compiled yet: it leaves the queue and is not admitted."""
    large = request("large", prompt_tokens=prompt_of(2000))
    aside, other = request("b", prompt_tokens=500), request("c", prompt_tokens=500)
    door = Door([large, aside, other], Pool(blocked={aside}), online=Budget(500))
    assert door.take() == [other]
    assert large.bypassed == 1
    assert door.plan.caps == {}
    assert aside in door.queue


def test_a_blocked_request_that_does_not_fit_closes_nobodys_line():
    blocked, next_of_it = victim("a", ONLINE, prompt_tokens=prompt_of(2000)), request("a")
    assert Door([blocked, next_of_it], Pool(blocked={blocked})).take() == [next_of_it]
    assert blocked.bypassed == 0


def test_something_is_admitted_where_nothing_runs_even_without_a_budget():
    view = request("a", OFFLINE, 4000)
    door = Door([view], running=(), offline=Budget(512, -1.0))
    assert door.take() == [view]
    assert 1 <= door.plan.caps[view.request_id] < 4000
    assert Door([request("a", OFFLINE)], offline=Budget(512, -1.0)).take() == []


def test_a_step_that_ends_early_leaves_the_queue_as_it_was():
    queue = waiting([request(c) for c in "abcd"])
    candidates = iter(Door(queue).admission)
    next(candidates)
    candidates.close()
    assert {v.client for v in Door(queue).take()} == set("abcd")


def test_an_error_while_a_candidate_is_judged_leaves_the_queue_as_it_was():
    queue = waiting([request(c) for c in "abcd"])
    door = Door(queue)

    def fail(view, reserve):
        raise ZeroDivisionError

    door.view.admissible_tokens = fail
    with pytest.raises(ZeroDivisionError) as kept:
        next(iter(door.admission))
    assert kept.traceback is not None  # holds the frames of the walk
    assert {v.client for v in Door(queue).take()} == set("abcd")


def test_who_lost_its_memory_online_needs_only_its_blocks() -> None:
    def admitted(view: object, free: int) -> list:
        return Door([view], pool=Pool(total=100, free=free), reserve=8).take()

    back = victim(lane=ONLINE, prompt_tokens=prompt_of(4))
    assert admitted(back, free=4) == [back]
    assert admitted(victim(lane=ONLINE, prompt_tokens=prompt_of(4)), free=3) == []
    new = request(prompt_tokens=prompt_of(4))
    assert admitted(new, free=11) == []
    assert admitted(request(prompt_tokens=prompt_of(4)), free=12) != []


def test_who_stands_back_comes_after_newcomers() -> None:
    back = victim(lane=ONLINE, prompt_tokens=prompt_of(2), stands_back_s=200.0)
    new = request(prompt_tokens=prompt_of(2))
    assert Door([back, new]).take() == [new, back]
    back = victim(lane=ONLINE, prompt_tokens=prompt_of(2), stands_back_s=50.0)
    new = request(prompt_tokens=prompt_of(2))
    assert Door([back, new]).take() == [back, new]
