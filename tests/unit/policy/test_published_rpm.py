"""Requests per minute: never more than the limit in any minute, never a refusal below it."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.policy.world import examples
from vllm_hybrid.policy.published.rpm import WINDOW_S, RequestRate

arrivals = st.lists(st.tuples(st.floats(0, 20), st.sampled_from("abc")), max_size=80)


@given(arrivals, st.integers(1, 5))
@examples(200)
def test_a_request_is_refused_exactly_when_the_last_minute_is_full(arrivals, limit):
    rate, now_s, accepted = RequestRate(limit), 0.0, []
    for gap_s, client in arrivals:
        now_s += gap_s
        recent = [at_s for at_s, who in accepted if who == client and now_s - at_s <= WINDOW_S]
        wait_s = rate.retry_after_s(client, now_s)
        assert (wait_s is None) == (len(recent) < limit)
        if wait_s is None:
            accepted.append((now_s, client))
        else:
            assert 0 <= wait_s <= WINDOW_S


def test_a_client_that_waits_as_long_as_it_was_told_is_taken():
    rate = RequestRate(1)
    assert rate.retry_after_s("a", 0.0) is None
    wait_s = rate.retry_after_s("a", 10.0)
    assert wait_s == 50.0
    assert rate.retry_after_s("a", 10.0 + wait_s + 1e-6) is None


def test_clients_that_are_gone_are_forgotten():
    rate = RequestRate(3)
    for i in range(10_000):
        rate.retry_after_s(f"c{i}", 0.1 * i)
    assert len(rate._accepted) <= 10 * WINDOW_S + 1
