"""Shaping keeps what it says it keeps: arrival times when thinning, the pattern of gaps when rescaling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_hybrid.workload import (
    Scale,
    TraceRequest,
    duration_s,
    rescale_lengths,
    rescale_rate,
    thin,
    window,
)

arrivals = st.lists(st.floats(0, 1000), max_size=50).map(sorted)


def at(times):
    return [TraceRequest(t, 100 + i, 10 + i) for i, t in enumerate(times)]


def test_a_window_counts_time_from_its_start():
    assert [r.arrival_s for r in window(at([0, 5, 9.5, 10, 12]), 5, 10)] == [0, 4.5]
    with pytest.raises(ValueError, match="start_s = 5"):
        window([], 5, 5)


@given(arrivals, st.floats(0.01, 1), st.integers(0, 9))
def test_thinning_keeps_the_times_of_the_share_that_stays(times, fraction, seed):
    requests = at(times)
    kept = thin(requests, fraction, seed)
    assert len(kept) == round(fraction * len(requests))
    assert kept == [r for r in requests if r in kept]
    assert kept == thin(requests, fraction, seed)


def test_thinning_cannot_add_load():
    with pytest.raises(ValueError, match=r"fraction = 1\.5"):
        thin(at([0]), 1.5, 0)


@given(arrivals, st.floats(0.1, 10))
def test_rescaling_the_rate_divides_every_gap_by_one_factor(times, factor):
    faster = rescale_rate(at(times), factor)
    assert [r.arrival_s * factor for r in faster] == pytest.approx(times)
    assert duration_s(faster) * factor == pytest.approx(duration_s(at(times)))


def test_rescaled_lengths_stay_within_their_bounds():
    requests = [TraceRequest(1, 10, 1000, "a", (1, 2)), TraceRequest(2, 4000, 7, "b")]
    scaled = rescale_lengths(requests, prompt=Scale(0.1, least=4, most=200), output=Scale(0.5, most=100))
    assert scaled == [TraceRequest(1, 4, 100, "a"), TraceRequest(2, 200, 4, "b")]


@pytest.mark.parametrize("bad", [{"factor": 0}, {"factor": 1, "least": 0}, {"factor": 1, "least": 5, "most": 4}])
def test_a_scale_without_meaning_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        Scale(**bad)
