"""Service as the VTC paper counts it, on runs small enough to count by hand."""

from __future__ import annotations

import pytest

from vllm_hybrid.sim.service import (
    Served,
    accumulated_gaps,
    mean_wait_s,
    service_difference,
    service_rates,
    service_within,
    shares,
)


def request(client: str, first_token_s: float, finished_s: float, tokens: int = 100, arrival_s: float = 0.0) -> Served:
    return Served(client, tokens, tokens, arrival_s, first_token_s, finished_s)


def steady(client: str, service_per_s: float, until_s: int) -> list[Served]:
    """One request per ten seconds, without a break."""
    tokens = round(service_per_s * 10 / 3)
    return [Served(client, tokens, tokens, float(s), float(s), s + 10.0) for s in range(0, until_s, 10)]


def test_service_is_prompt_plus_twice_output_spread_from_first_to_last_token() -> None:
    one = [request("a", 10.0, 20.0)]
    assert service_within(one, 0.0, 30.0) == {"a": 300.0}
    assert service_within(one, 10.0, 15.0) == {"a": 150.0}
    assert service_within(one, 20.0, 30.0) == {"a": 0.0}


def test_a_single_token_counts_at_its_moment() -> None:
    one = [Served("a", 10, 1, 0.0, 5.0, 5.0)]
    assert service_within(one, 0.0, 10.0) == {"a": 12.0}
    assert service_within(one, 10.0, 20.0) == {"a": 0.0}


def test_shares_and_rates_of_a_window() -> None:
    both = steady("a", 300, 100) + steady("b", 900, 100)
    assert shares(both, 0.0, 100.0) == pytest.approx({"a": 0.25, "b": 0.75})
    assert service_rates(both, 20.0, 60.0) == pytest.approx({"a": 300.0, "b": 900.0})
    assert shares(both, 200.0, 300.0) == {}


def test_mean_wait_is_per_client() -> None:
    found = mean_wait_s([request("a", 4.0, 5.0), request("a", 8.0, 9.0), request("b", 1.0, 2.0)])
    assert found == {"a": 6.0, "b": 1.0}


def test_the_gap_accumulates_while_one_client_gets_more() -> None:
    gaps = accumulated_gaps(steady("a", 300, 60) + steady("b", 900, 60), 60.0, every_s=6.0)
    assert gaps == pytest.approx([3600.0 * tick for tick in range(1, 11)])


def test_a_client_that_asked_for_little_and_got_it_is_not_treated_unfairly() -> None:
    both = steady("a", 300, 660) + steady("b", 900, 660)
    demand = {
        "a": [(float(s), 3000.0) for s in range(5, 660, 10)],  # what it got
        "b": [(float(s), 90000.0) for s in range(5, 660, 10)],  # ten times as much
    }
    found = service_difference(both, demand, 600.0)
    assert (found.largest, found.mean, found.variance) == pytest.approx((0.0, 0.0, 0.0))
    demand["a"] = demand["b"]
    assert service_difference(both, demand, 600.0).mean == pytest.approx(600.0)
