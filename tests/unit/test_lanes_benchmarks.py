"""The loads of the benchmarks on lanes are what they say, and so is what they compare with."""

from dataclasses import replace

import pytest

from benchmarks import colocated, lanes_stock, prefix_order
from benchmarks.papers.hygen_search import BURST_S, requests_of


def test_a_burst_is_so_many_times_the_rate_for_a_minute_and_changes_nothing_else():
    plain, burst = ([r for r in requests_of(2.0, 100.0, 1, times) if r.lane == "online"] for times in (1.0, 10.0))
    begin_s = 40.0
    added = [r for r in burst if r not in plain]
    assert set(plain) < set(burst) and len({r.request_id for r in burst}) == len(burst)
    assert len(added) == pytest.approx(9 * len(plain) * BURST_S / 100.0, rel=0.01)
    assert all(begin_s <= r.arrival_s <= begin_s + BURST_S for r in added)


def test_prefix_order_can_win_more_the_more_prefixes_and_members_there_are():
    run = prefix_order.Run("a100_llama2_7b_fp16", "prefix", groups=200, members=4)
    few, many_groups, many_members = (
        prefix_order.ceiling(r) for r in (run, replace(run, groups=1_000), replace(run, members=16))
    )
    assert 1.0 < few < many_members < many_groups < 2.5


def test_the_best_fixed_budget_is_the_one_that_harvests_most_of_those_with_the_best_goodput():
    figures = {256: (0.99, 10.0), 512: (0.989, 30.0), 1024: (0.98, 90.0), 2048: (0.5, 99.0), 8192: (0.1, 100.0)}
    results = {
        f"gpu 30% {budget}": {"goodput": goodput, "offline": offline} for budget, (goodput, offline) in figures.items()
    }
    assert lanes_stock.best_of("gpu", 0.3, results) == "512"


def test_the_live_online_load_has_exactly_the_rate_that_is_asked_for():
    requests = colocated.online(1, 40, 100.0)
    tokens = sum(r.prompt_tokens + r.output_tokens for r in requests)
    assert tokens / (requests[-1].arrival_s - colocated.LEAD_S) == pytest.approx(100.0)


def test_who_waits_still_counts_for_the_bound():
    picked = [float(i) for i in range(400)]
    assert prefix_order.within_bound(picked)
    assert prefix_order.within_bound([None, *picked[:129]])
    assert not prefix_order.within_bound([None, *picked[:130]])
    assert not prefix_order.within_bound([500.0, *picked])
