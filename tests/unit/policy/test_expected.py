"""How long answers go on, the gate on expected memory, and the order of one client's line by value."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.policy.world import OFFLINE, ONLINE, Pool, decode, request, step_view
from vllm_hybrid.policy.expected import ExpectedGate
from vllm_hybrid.policy.survival import LONGEST, Survival, product_limit
from vllm_hybrid.policy.value import Urgency, ValueLine


def taught(lengths: list[int], client: str = "a") -> Survival:
    survival = Survival()
    for tokens in lengths:
        survival.observe((ONLINE, client), tokens)
    survival.refresh([])
    return survival


def chance(survival: Survival, done: int, more: int, **fields: object) -> float:
    view = decode(output_tokens=done, max_output_tokens=4096, **fields)
    return float(survival.goes_on([view], np.array([more]))[0, 0])


def test_without_a_prior_the_curve_is_that_of_the_answers() -> None:
    curve = product_limit([1, 2, 2, 4], [], np.ones(LONGEST), 0.0)
    assert curve[:5] == pytest.approx([1.0, 0.75, 0.25, 0.25, 0.0], abs=1e-5)


def test_requests_that_still_run_count_for_as_long_as_they_have_run() -> None:
    alone = product_limit([10] * 5, [], np.ones(LONGEST), 0.0)
    beside = product_limit([10] * 5, [100] * 5, np.ones(LONGEST), 0.0)
    assert alone[50] < 1e-4
    assert beside[50] == pytest.approx(0.5)


def test_what_is_generated_already_tells_how_much_is_left() -> None:
    survival = taught([100] * 200 + [1000] * 200)
    assert chance(survival, 1, 200) == pytest.approx(0.5, abs=0.08)
    assert chance(survival, 150, 200) > 0.85  # it is one of the long ones


def test_a_client_has_its_own_curve_and_max_tokens_ends_it() -> None:
    survival = taught([20] * 200)
    for _ in range(200):
        survival.observe((ONLINE, "b"), 2000)
    survival.refresh([])
    assert chance(survival, 1, 500) < 0.2
    assert float(survival.goes_on([decode("b", max_output_tokens=4096)], np.array([500]))[0, 0]) > 0.8
    assert float(survival.goes_on([decode("b", max_output_tokens=100)], np.array([500]))[0, 0]) == 0.0


def test_the_gate_lets_in_what_the_pool_will_hold() -> None:
    survival = taught([100] * 500)
    pool = Pool(total=101, free=50)  # 1,600 tokens
    running = [decode(context_tokens=100, max_output_tokens=4096) for _ in range(6)]
    gate = ExpectedGate(step_view(running, pool=pool), survival)
    assert gate.fits(request(prompt_tokens=50, max_output_tokens=4096))
    assert not gate.fits(request(prompt_tokens=800, max_output_tokens=4096))
    for _ in range(3):
        gate.admit(request(prompt_tokens=50, max_output_tokens=4096))
    assert not gate.fits(request(prompt_tokens=300, max_output_tokens=4096))


def test_online_requests_may_use_what_offline_work_holds() -> None:
    survival = taught([10] * 500)
    pool = Pool(total=101, free=10)
    running = [decode(lane=OFFLINE, context_tokens=700, max_output_tokens=16) for _ in range(2)]
    gate = ExpectedGate(step_view(running, pool=pool), survival)
    assert gate.fits(request(prompt_tokens=1000, max_output_tokens=16))
    assert not gate.fits(request(lane=OFFLINE, prompt_tokens=1000, max_output_tokens=16))


def test_where_nobody_runs_anybody_may_come_in() -> None:
    gate = ExpectedGate(step_view([], pool=Pool(total=11, free=10)), Survival())
    assert gate.fits(request(prompt_tokens=150, max_output_tokens=4096))


def test_small_requests_go_first_and_late_ones_last() -> None:
    urgency = Urgency(ttft_s=1.0, now_s=0.5, token_s=0.001)
    line = ValueLine(urgency)
    large, small, old = request(prompt_tokens=400), request(prompt_tokens=30), request(prompt_tokens=10, arrival_s=-0.8)
    for view in (large, small, old):
        line.add(view)
    assert list(line) == [small, large, old]
    assert old.late and line.first_late() is old
    urgency.now_s = 0.7  # the large one takes .4 s
    assert line.first(2) == [small, old]
    assert line.discard(old) and not line.discard(old)
    assert list(line) == [small, large]
    assert large.late


def test_without_a_target_a_line_is_in_order_of_arrival() -> None:
    line = ValueLine(Urgency())
    views = [request(prompt_tokens=tokens) for tokens in (300, 20, 100)]
    for view in views:
        line.add(view)
    assert list(line) == views
    back = request(prompt_tokens=500)
    line.prepend(back)
    assert line.head() is back
    assert len(line) == 4 and back in line
