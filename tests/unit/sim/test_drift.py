"""How far clients drift apart, and only while both of them wait."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sim.runs import answered, run_of
from vllm_hybrid.sim.answers import answers_of
from vllm_hybrid.sim.drift import (
    ClientService,
    curves,
    drift_figures,
    largest_delivery,
    merged,
    overlaps,
    services,
    worst_drifts,
)
from vllm_hybrid.sim.measure import Slo, measure


def client(name: str, at_s: list[float], amounts: list[float], *backlogged: tuple[float, float]) -> ClientService:
    return ClientService("online", name, 1.0, np.array(at_s), np.array(amounts), backlogged)


def test_an_idle_client_is_owed_nothing() -> None:
    busy = client("busy", [1.0, 2.0, 3.0], [100.0, 100.0, 100.0], (0.0, 10.0))
    idle = client("idle", [], [])
    assert list(worst_drifts([busy, idle])) == []
    assert drift_figures([busy, idle], 10, 1000)["worst_gap_of_bound"] is None


def test_only_the_stretch_in_which_both_wait_counts() -> None:
    greedy = client("greedy", [1.0, 5.0, 6.0, 20.0], [500.0, 30.0, 30.0, 900.0], (0.0, 10.0))
    late = client("late", [7.0, 21.0], [10.0, 5.0], (4.0, 10.0))
    (worst,) = worst_drifts([greedy, late])
    assert worst.service == 60.0
    assert worst.clients == ("greedy", "late")


def test_every_interval_within_the_stretch_counts_not_only_those_from_its_start() -> None:
    """First one client gets ahead by 50, then the other overtakes it by 40: between these two lie 90."""
    f = client("f", [1.0], [50.0], (0.0, 10.0))
    g = client("g", [2.0, 3.0], [45.0, 45.0], (0.0, 10.0))
    (worst,) = worst_drifts([f, g])
    assert worst.service == 90.0


def test_lanes_are_not_compared() -> None:
    online = client("a", [1.0], [100.0], (0.0, 10.0))
    offline = ClientService("offline", "b", 1.0, np.array([]), np.array([]), [(0.0, 10.0)])
    assert list(worst_drifts([online, offline])) == []


def test_service_is_a_prompt_with_its_first_token_and_two_per_output_token() -> None:
    run = run_of(answered([1.0, 2.0, 3.0], prompt_tokens=100, client="a", scheduled_s=0.5))
    (got,) = services(answers_of(run), {"a": 2.0})
    assert (got.between(0, 1), got.between(1, 1.5), got.between(0, 9)) == (0.0, 102.0, 106.0)
    assert (got.total, got.weight, got.backlogged) == (106.0, 2.0, [(0.0, 0.5)])


def test_the_bound_is_twice_the_longest_prompt_or_the_pool() -> None:
    requests = [answered([5.0], scheduled_s=4.0, client=name) for name in ("a", "b")]
    fairness = measure(run_of(*requests, pool_tokens=1000), Slo())["fairness"]
    assert fairness["bound_2u"] == 4000
    assert fairness["worst_gap_service"] == 0.0
    long = measure(run_of(*requests, answered([9.0], prompt_tokens=5000), pool_tokens=1000), Slo())["fairness"]
    assert long["bound_2u"] == 10_000


def test_a_weight_divides_the_service() -> None:
    heavy = answered([1.0, 3.0], prompt_tokens=30, output_tokens=3, client="heavy")
    light = answered([2.0], prompt_tokens=10, output_tokens=3, client="light")
    waits = [answered([], output_tokens=1, client=name) for name in ("heavy", "light")]
    run = run_of(heavy, light, *waits)
    assert measure(run, Slo(), weights={"heavy": 3.0})["fairness"]["worst_gap_service"] == pytest.approx(12)
    assert measure(run, Slo())["fairness"]["worst_gap_service"] == pytest.approx(32)


def test_the_curves_end_at_what_each_client_got() -> None:
    run = run_of(answered([1.0, 2.0], client="a"), answered([3.0], client="b"))
    drawn = curves(services(answers_of(run), {}), 10.0)
    assert {name: got[-1] for name, got in drawn["service"].items()} == {"a (online)": 14.0, "b (online)": 12.0}
    assert (drawn["at_s"][0], drawn["at_s"][-1]) == (0.0, 10.0)


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda s: (min(s), max(s))), max_size=8)


@given(spans, spans)
def test_merging_and_overlapping_agree_with_counting_seconds(these: list, those: list) -> None:
    def seconds(pieces) -> set[int]:
        return {second for start_s, end_s in pieces for second in range(start_s, end_s)}

    a, b = merged(these), merged(those)
    assert seconds(a) == seconds(these)
    assert all(left[1] < right[0] for left, right in pairwise(a))
    assert seconds(overlaps(a, b)) == seconds(these) & seconds(those)


def test_the_worst_drift_agrees_with_trying_every_interval() -> None:
    rng = random.Random(3)
    for _ in range(20):
        pair = []
        for name in "fg":
            times = sorted(rng.sample(range(1, 40), 8))
            pair.append(client(name, times, [float(rng.randrange(1, 50)) for _ in times], (5.0, 30.0)))
        f, g = pair
        points = [5.0, *(t for t in sorted({*f.times_s, *g.times_s}) if 5 < t <= 30)]
        difference = [float((f.accumulated(np.array([t])) - g.accumulated(np.array([t])))[0]) for t in points]
        expected = max((abs(a - b) for a, b in combinations(difference, 2)), default=0.0)
        (worst,) = worst_drifts(pair)
        assert worst.service == expected


def test_the_drift_is_at_least_one_prompt_that_came_while_both_waited() -> None:
    f = client("f", [1.0, 3.0, 20.0], [50.0, 80.0, 900.0], (0.0, 10.0))
    g = client("g", [2.0, 21.0], [45.0, 700.0], (0.0, 10.0))
    assert largest_delivery([f, g]) == 80.0
    assert largest_delivery([f, g]) <= max(d.service for d in worst_drifts([f, g]))
    assert largest_delivery([f, client("idle", [], [])]) == 0.0
