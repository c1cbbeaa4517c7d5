"""Offline filling: never beyond the tokens and seconds that are left, in fair order, and somebody runs where asked."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import OFFLINE, decode, examples, plain_counters, prefill, step_view, trained
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS, Budget, Filling, OfflineFiller
from vllm_hybrid.policy.request import RequestView

PREDICTOR = trained(constant_s=0.005, decode_s=1e-3, prefill_token_s=1e-4, context_token_s=1e-6, pair_s=1e-8)


def fill(decodes=(), prefills=(), budget=None, counters=None, at_least_one=False, **view) -> Filling:
    filler = OfflineFiller(PREDICTOR, counters or plain_counters())
    return filler.fill(decodes, prefills, budget or Budget(512), step_view(**view), at_least_one)


def chunk(filling: Filling, view: RequestView, limit: int) -> int:
    """Prefill tokens the request gets; vLLM itself cuts at `limit`."""
    return min(filling.caps.get(view.request_id, limit), view.missing_tokens, limit)


def seconds_of(filling: Filling, limit: int = 10**6) -> float:
    """What the filling adds to a step."""
    return sum(
        PREDICTOR.prefill_seconds(chunk(filling, v, limit), v.computed_tokens)
        if v.prefilling
        else PREDICTOR.decode_seconds(v.computed_tokens)
        for v in filling.run
    )


def tokens_of(filling: Filling, decode_tokens: int, limit: int) -> int:
    return sum(chunk(filling, v, limit) if v.prefilling else decode_tokens for v in filling.run)


decodes = st.lists(st.builds(lambda c, n: decode(c, OFFLINE, n), st.sampled_from("abc"), st.integers(1, 9000)))
prefills = st.lists(
    st.builds(
        lambda c, done, missing: prefill(c, OFFLINE, done + missing, done),
        st.sampled_from("abc"),
        st.integers(0, 9000),
        st.integers(1, 3000),
    )
)
budgets = st.builds(Budget, st.integers(-5, 600), st.sampled_from([math.inf, -0.01, 0.0, 0.003, 0.02, 0.5]))


@given(decodes, prefills, budgets, st.integers(1, 4), st.booleans(), st.integers(8, 600))
@examples(300)
def test_the_budget_binds_in_tokens_and_seconds(decodes, prefills, budget, decode_tokens, at_least_one, chunk_limit):
    tokens, seconds = budget.tokens, budget.seconds
    view = {"decode_tokens": decode_tokens, "max_chunk_tokens": chunk_limit}
    filling = fill(decodes, prefills, budget, at_least_one=at_least_one, **view)
    assert {*filling.run, *filling.paused} == {*decodes, *prefills}
    assert len(filling.run) + len(filling.paused) == len(decodes) + len(prefills)
    assert all(1 <= cap <= chunk_limit for cap in filling.caps.values())
    assert filling.tokens == tokens_of(filling, decode_tokens, chunk_limit)
    if filling.run and not (at_least_one and len(filling.run) == 1):
        assert filling.tokens <= tokens
        assert seconds_of(filling, chunk_limit) <= seconds * (1 + 1e-9) + 1e-12
    assert filling.run or not (at_least_one and (decodes or prefills))


@given(decodes, prefills, budgets)
@examples(150)
def test_what_is_spent_is_what_was_given(decodes, prefills, budget):
    tokens, seconds = budget.tokens, budget.seconds
    filling = fill(decodes, prefills, budget, max_chunk_tokens=10**6)
    assert budget.tokens == tokens - filling.tokens
    if seconds < math.inf:
        assert seconds - budget.seconds == pytest.approx(seconds_of(filling))


@given(decodes, st.dictionaries(st.sampled_from("abc"), st.floats(0, 100)), st.integers(0, 10))
@examples(150)
def test_the_smallest_counter_decodes_first(decodes, values, tokens):
    counters = plain_counters()
    counters.values = {(OFFLINE, client): value for client, value in values.items()}
    filling = fill(decodes, budget=Budget(tokens), counters=counters)
    if filling.run and filling.paused:
        assert max(counters.value(v.key) for v in filling.run) <= min(counters.value(v.key) for v in filling.paused)


def test_decodes_come_before_prefills_and_prefills_by_counter():
    counters = plain_counters()
    counters.charge((OFFLINE, "rich"), 1000, 0)
    one, rich, poor = decode("rich", OFFLINE), prefill("rich", OFFLINE, 90), prefill("poor", OFFLINE, 90)
    filling = fill([one], [rich, poor], Budget(101), counters)
    assert filling.run == [one, poor, rich]
    assert filling.caps == {rich.request_id: 10}


def test_the_last_prefill_gets_what_is_left_in_one_chunk():
    first, second, third = (prefill("a", OFFLINE, 100) for _ in range(3))
    filling = fill([], [first, second, third], Budget(130))
    assert (filling.run, filling.paused) == ([first, second], [third])
    assert filling.caps == {second.request_id: 30}


def test_a_chunk_deep_in_a_prompt_is_shorter_for_the_same_time():
    shallow, deep = prefill("a", OFFLINE, 10_000), prefill("a", OFFLINE, 60_000, done_tokens=50_000)
    chunks = [next(iter(fill([], [v], Budget(512, 0.03), max_tokens=512).caps.values())) for v in (shallow, deep)]
    assert chunks[1] < chunks[0]
    assert PREDICTOR.prefill_seconds(chunks[1] + 1, 50_000) > 0.03 >= PREDICTOR.prefill_seconds(chunks[1], 50_000)


def test_with_nothing_left_everybody_pauses():
    filling = fill([decode("a", OFFLINE)], [prefill("a", OFFLINE)], Budget(512, -0.001))
    assert (filling.run, filling.tokens, len(filling.paused)) == ([], 0, 2)


@pytest.mark.parametrize("budget", [Budget(0), Budget(-3), Budget(512, -1.0), Budget(0, 0.0)])
def test_somebody_runs_where_nothing_else_would(budget):
    one, other = decode("a", OFFLINE), decode("a", OFFLINE)
    filling = fill([one, other], [], Budget(budget.tokens, budget.seconds), at_least_one=True)
    assert (filling.run, filling.paused) == ([one], [other])
    long = prefill("a", OFFLINE, 4000)
    filling = fill([], [long], Budget(budget.tokens, budget.seconds), at_least_one=True)
    assert filling.run == [long]
    assert filling.caps == {long.request_id: UNTRAINED_TOKENS}


def test_vllms_own_limit_on_chunks_is_not_booked_beyond():
    first, second = (prefill("a", OFFLINE, 400) for _ in range(2))
    filling = fill([], [first, second], Budget(200), max_chunk_tokens=100)
    assert filling.run == [first, second]
    assert filling.caps == {}
    assert filling.tokens == 200


# -- the budget itself -------------------------------------------------------------------------------------------------
@given(st.integers(-10, 5000), st.floats(-1, 10), st.integers(0, 100), st.integers(0, 50_000))
@examples(200)
def test_a_budget_sells_whole_tokens_it_can_pay_for_down_to_its_floor(tokens, seconds, floor, done):
    sold = Budget(tokens, seconds, floor).prefill_tokens(PREDICTOR, done)
    assert 0 <= sold <= max(0, tokens)
    if sold > floor:
        assert PREDICTOR.prefill_seconds(sold, done) <= seconds * (1 + 1e-9)
    else:
        assert sold == max(0, min(tokens, floor)) or PREDICTOR.prefill_seconds(sold + 1, done) > seconds


def test_the_floor_is_granted_once_and_not_to_each():
    budget = Budget(512, 0.0, 32)
    budget.spend_decode(20, 0, 0.01)
    assert budget.prefill_tokens(PREDICTOR, 0) == 12
    budget.spend_decode(12, 0, 0.01)
    assert budget.prefill_tokens(PREDICTOR, 0) == 0
