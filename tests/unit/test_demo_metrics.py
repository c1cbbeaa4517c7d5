"""The demo's figures, on replays small enough to work out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo.client import Outcome, Replay
from benchmarks.demo.load import Item
from benchmarks.demo.metrics import (
    bench_serve_keys,
    capacity,
    contention,
    percentile,
    service_between,
    tenant_figures,
)


def outcome(tenant, due_s, times, prompt_tokens=10, wanted=None, error=None):
    """A request that got one token at each of `times`."""
    item = Item(tenant, "online", due_s, "?", len(times) if wanted is None else wanted)
    return Outcome(item, due_s, prompt_tokens, [(t, 1) for t in times], error)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys(values, percent):
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_no_values_have_no_percentile():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_tenants_figures_are_its_own():
    outcomes = [
        outcome("a", 1.0, [1.5, 1.6, 2.6]),
        outcome("a", 2.0, [5.0, 5.1]),
        outcome("b", 0.0, [9.0, 99.0]),
    ]
    a = tenant_figures(outcomes, "a")
    assert (a.requests, a.finished, a.input_tokens, a.output_tokens) == (2, 2, 20, 5)
    assert a.ttft_p50_s == pytest.approx((0.5 + 3.0) / 2)
    assert a.ttft_p99_s == pytest.approx(0.5 + 2.5 * 0.99)
    assert a.worst_gap_s == pytest.approx(1.0)
    assert a.tokens_per_s == pytest.approx(25 / 5.1)


def test_time_to_first_token_counts_from_when_the_request_was_due():
    late = outcome("a", 1.0, [4.0])
    late.sent_s = 3.0
    assert late.ttft_s == 3.0


def test_errors_and_missing_tokens_are_not_finished():
    figures = tenant_figures(
        [
            outcome("a", 0, [1.0]),
            outcome("a", 0, [1.0], wanted=2),
            outcome("a", 0, [1.0], error="APIError: gone"),
            outcome("a", 0, [], wanted=2),
        ],
        "a",
    )
    assert (figures.requests, figures.finished) == (4, 1)


def test_a_tenant_without_answers_has_figures_too():
    figures = tenant_figures([outcome("a", 0, [], wanted=1)], "a")
    assert figures.tokens_per_s == 0
    assert figures.ttft_p99_s != figures.ttft_p99_s


def test_service_counts_prompts_once_and_output_twice():
    outcomes = [outcome("a", 0, [1, 2, 3]), outcome("b", 0, [2])]
    assert service_between(outcomes, "a", 0, 3) == 10 + 2 * 3
    assert service_between(outcomes, "a", 1, 2) == 2
    assert service_between(outcomes, "b", 0, 2) == 10 + 2


def test_shares_are_taken_where_both_have_requests_waiting():
    # a waits in [0, 4] and [10, 11]; b in [1, 6] and [10, 12]: the longest overlap is [1, 4].
    outcomes = [
        outcome("a", 0.0, [2.0, 5.0]),
        outcome("a", 1.5, [4.0, 4.5]),
        outcome("a", 10.0, [11.0]),
        outcome("b", 1.0, [3.0, 3.5]),
        outcome("b", 2.0, [6.0]),
        outcome("b", 10.0, [12.0]),
    ]
    window = contention(outcomes, ("a", "b"))
    assert (window.start_s, window.end_s) == (1.0, 4.0)
    assert window.service == {"a": 24.0, "b": 14.0}
    assert window.share("a") == pytest.approx(24 / 38)


def test_tenants_that_never_wait_together_have_no_window():
    window = contention([outcome("a", 0, [1.0]), outcome("b", 2, [3.0])], ("a", "b"))
    assert window.seconds == 0
    assert window.share("a") != window.share("a")


def test_capacity_leaves_out_the_start_and_the_tail():
    outcomes = [outcome("w", 0, [1.0, 2.0]), outcome("w", 0, [3.0, 4.0]), outcome("w", 0, [5.0, 9.0])]
    # From the first end, 2.0, to the last first token, 5.0: two prompts and three output tokens.
    assert capacity(Replay(outcomes, 0.1)) == pytest.approx((2 * 10 + 2 * 3) / 3)


def test_capacity_of_a_machine_that_finishes_nothing_is_refused():
    with pytest.raises(ValueError, match="too slow"):
        capacity(Replay([outcome("w", 0, [1.0], wanted=5)], 0.1))
    with pytest.raises(ValueError, match="fewer requests"):
        capacity(Replay([outcome("w", 0, [1.0, 2.0])], 0.1))


def test_the_keys_are_those_of_vllm_bench_serve():
    replay = Replay([outcome("a", 0, [1.0, 1.5]), outcome("b", 0, [2.0], wanted=2)], 0.1)
    both, a = bench_serve_keys(replay), bench_serve_keys(replay, "a")
    assert (both["completed"], both["failed"], both["duration"]) == (1, 1, 2.0)
    assert both["total_token_throughput"] == pytest.approx(23 / 2)
    assert both["output_throughput"] == pytest.approx(3 / 2)
    assert a["median_ttft_ms"] == pytest.approx(1000)
    assert a["mean_tpot_ms"] == a["max_itl_ms"] == pytest.approx(500)
