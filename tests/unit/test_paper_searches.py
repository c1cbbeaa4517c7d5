"""The searches of the paper benchmarks find what they look for, on curves that are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper_apt import RATES, effective_qps
from benchmarks.papers.apt_runs import Run
from benchmarks.papers.hygen_search import CLOSE, largest

curves = st.tuples(st.integers(0, 60), st.floats(0.01, 1.0), st.sampled_from([math.sqrt, math.log1p, lambda x: x * x]))


@given(curves, st.floats(1.01, 3.0), st.integers(2, 120), st.booleans())
def test_the_rung_found_meets_the_limit_closely_or_is_the_last_that_does(curve, limit, rungs, warm):
    flat, slope, grow = curve
    known = {}

    def ratio(rung):
        return known.setdefault(rung, 1 + slope * grow(max(0, rung - flat)) / 10)

    if warm:
        ratio(rungs // 2)
    found = largest(ratio, limit, rungs, list(known))
    if found is None:
        assert ratio(0) > limit
        return
    assert ratio(found) <= limit
    assert ratio(found) >= limit - CLOSE or found == rungs - 1 or ratio(found + 1) > limit


def test_a_knob_that_costs_nothing_is_opened_at_once():
    tried = []
    assert largest(lambda rung: tried.append(rung) or 1.0, 1.05, 100, ()) == 99 and tried == [99]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((1.0, 0.9, 0.5, 0.1, 0.0, 0.0), 2.5),
        ((0.5,) * 6, 0.6),
        ((0.9,) * 6, 8.0),
        ((1.0, 0.6, 0.8, 0.1, 0, 0), 3 + 1 / 7),
    ],
)
def test_effective_throughput_is_where_the_share_falls_below_the_goal(shares, expected):
    results = {Run(qps, 1.0, "apt").name: {"p99": share} for qps, share in zip(RATES, shares, strict=True)}
    assert effective_qps(results, 1.0, "apt", "p99") == pytest.approx(expected)
