"""Deadlines of online tokens against the definition, token by token, in both gap modes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import decode, examples
from vllm_hybrid.config import load_config
from vllm_hybrid.policy.slo import Deadlines

TTFT_S, TBT_S = 1.0, 0.1


def deadlines(gap: str = "deadline", ttft_s: float | None = TTFT_S, tbt_s: float | None = TBT_S) -> Deadlines:
    return Deadlines(load_config({"slo": {"online": {"ttft_s": ttft_s, "tbt_s": tbt_s, "gap": gap}}}).slo)


def fresh_request(arrival_s: float = 0.0):
    return decode(arrival_s=arrival_s, output_tokens=0)


class Stream:
    """One request whose tokens are delivered at given times."""

    def __init__(self, dates: Deadlines) -> None:
        self.dates = dates
        self.view = fresh_request()
        self.last_s = 0.0

    def deliver(self, at_s: float) -> None:
        self.view.output_tokens += 1
        self.last_s = at_s

    def due(self) -> float:
        return self.dates.earliest([self.view], self.last_s, self.last_s)


gaps = st.lists(st.floats(0.001, 0.5), min_size=1, max_size=40)


@given(gaps)
@examples(150)
def test_each_token_is_due_one_tbt_after_the_later_of_the_last_deadline_and_its_delivery(gaps):
    stream, due, now = Stream(deadlines()), TTFT_S, 0.0
    for gap in gaps:
        now += gap
        stream.deliver(now)
        due = max(due, now) + TBT_S
        assert stream.due() == pytest.approx(due)


@given(gaps)
@examples(100)
def test_strict_counts_every_gap_from_the_last_token(gaps):
    stream, now = Stream(deadlines("strict")), 0.0
    for gap in gaps:
        now += gap
        stream.deliver(now)
        assert stream.due() == pytest.approx(now + TBT_S)


@given(gaps, st.data())
@examples(100)
def test_looking_less_often_never_grants_more_time(gaps, data):
    """A plan that is used again does not look; what was late in between may be forgotten, never invented."""
    seldom, always, now = Stream(deadlines()), Stream(deadlines()), 0.0
    for gap in gaps:
        now += gap
        seldom.deliver(now)
        always.deliver(now)
        exact = always.due()
        if data.draw(st.booleans()):
            assert seldom.due() <= exact + 1e-9


def test_tokens_on_time_keep_the_schedule_of_the_settings_however_seldom_one_looks():
    stream = Stream(deadlines())
    for k in range(30):
        stream.deliver(0.5 + 0.01 * k)
    assert stream.due() == pytest.approx(TTFT_S + 30 * TBT_S)


def test_early_tokens_are_credit_and_late_ones_are_no_debt():
    early, late = Stream(deadlines()), Stream(deadlines())
    for k in range(5):
        early.deliver(0.1 + 0.01 * k)
        late.deliver(5.0 + k)
        early.due(), late.due()
    assert early.due() - early.last_s == pytest.approx(TTFT_S + 5 * TBT_S - 0.14)
    assert late.due() - late.last_s == pytest.approx(TBT_S)


def test_without_a_ttft_the_first_token_starts_the_clock():
    stream = Stream(deadlines(ttft_s=None))
    stream.deliver(7.0)
    assert stream.due() == pytest.approx(7.0 + TBT_S)
    stream.deliver(7.02)
    assert stream.due() == pytest.approx(7.0 + 2 * TBT_S)


def test_a_token_in_flight_pushes_the_next_deadline_by_one_gap():
    view = fresh_request()
    view.output_tokens = 1
    dates = deadlines()
    assert dates.earliest([view], 0.5, 0.5) == pytest.approx(TTFT_S + TBT_S)
    view.in_flight = 1
    assert dates.earliest([view], 0.5, 0.6) == pytest.approx(TTFT_S + 2 * TBT_S)


def test_strict_counts_from_the_return_of_the_token_in_flight():
    view = fresh_request()
    view.output_tokens = view.in_flight = 1
    assert deadlines("strict").earliest([view], 0.5, 0.52) == pytest.approx(0.52 + TBT_S)


def test_the_first_token_in_flight_has_the_deadline_of_the_first_and_the_next_one_gap_more():
    view = fresh_request()
    view.in_flight = 1
    dates = deadlines()
    assert dates.earliest([view], 0.0, 0.3) == pytest.approx(TTFT_S + TBT_S)
    view.output_tokens, view.in_flight = 1, 0
    assert dates.earliest([view], 0.3, 0.3) == pytest.approx(TTFT_S + TBT_S)


def test_without_a_ttft_a_first_token_in_flight_counts_from_its_return_not_from_the_past():
    view = fresh_request()
    view.in_flight = 1
    assert deadlines(ttft_s=None).earliest([view], 10.0, 12.0) == pytest.approx(12.0 + TBT_S)


def test_the_earliest_of_several_binds():
    dates = deadlines()
    views = [fresh_request(arrival_s) for arrival_s in (3.0, 1.0, 2.0)]
    for view in views:
        view.output_tokens = 1
    assert dates.earliest(views, 1.5, 1.5) == pytest.approx(1.0 + TTFT_S + TBT_S)


def test_nobody_decodes_nothing_is_due():
    assert deadlines().earliest([], 5.0, 5.0) == math.inf


def test_without_a_tbt_decodes_have_no_deadline_but_first_tokens_do():
    dates = deadlines(tbt_s=None)
    assert not dates.between_tokens
    assert deadlines().between_tokens
    assert dates.first_token(fresh_request(4.0)) == 4.0 + TTFT_S
    assert deadlines(ttft_s=None).first_token(fresh_request(4.0)) == math.inf


@given(st.lists(st.tuples(st.floats(0.001, 0.3), st.integers(1, 5)), min_size=1, max_size=20))
@examples(60)
def test_accepted_drafts_arrive_together_and_count_one_gap_each(bursts):
    stream, due, now = Stream(deadlines()), TTFT_S, 0.0
    for gap, tokens in bursts:
        now += gap
        for _ in range(tokens):
            stream.deliver(now)
        due = max(due + TBT_S * (tokens - 1), now) + TBT_S
        assert stream.due() == pytest.approx(due)
