"""The figures of a run: those of `vllm bench serve` where all is well, and what starving and parking cannot improve."""

from __future__ import annotations

import json
import math
import re
from array import array
from pathlib import Path

import pytest

from tests.unit.sim.runs import answered, run_of
from vllm_hybrid.sim.measure import Slo, measure
from vllm_hybrid.sim.records import RequestRecord, SimRequest, StepLog

TARGETS = Slo(ttft_s=1.0, tbt_s=0.1)


def steady(arrival_s: float = 0.0, ttft_s: float = 0.5, tokens: int = 100, gap_s: float = 0.05) -> list[float]:
    return [arrival_s + ttft_s + i * gap_s for i in range(tokens)]


def test_the_figures_of_a_finished_run_are_those_of_bench_serve() -> None:
    first, second = [1.0, 1.5, 2.5], [4.0, 4.2]
    figures = measure(run_of(answered(first), answered(second, arrival_s=2.0), end_s=5.0), Slo())
    assert (figures["completed"], figures["failed"], figures["duration"]) == (2, 0, 5.0)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (20, 5)
    assert figures["total_token_throughput"] == 5.0
    assert figures["request_throughput"] == 0.4
    assert (figures["mean_ttft_ms"], figures["median_ttft_ms"]) == (1500.0, 1500.0)
    assert figures["mean_tpot_ms"] == pytest.approx((750 + 200) / 2)
    assert figures["p50_itl_ms"] == pytest.approx(500)
    assert figures["mean_e2el_ms"] == pytest.approx((2500 + 2200) / 2)
    assert figures["max_worst_gap_ms"] == pytest.approx(1000)


def test_starving_a_request_shows_in_the_wait_though_not_in_the_ttft() -> None:
    served = [answered(steady()) for _ in range(9)]
    figures = measure(run_of(*served, answered([], output_tokens=100), end_s=60.0), TARGETS)
    assert figures["max_ttft_ms"] == pytest.approx(500)
    assert figures["max_wait_ms"] == pytest.approx(60_000)
    assert figures["never_started"] == 1
    assert figures["goodput_share"] == figures["attainment_p99_gap"] == 0.9


def test_parking_a_started_request_shows_in_the_worst_gap_though_not_in_its_p99() -> None:
    """ALGORITHMS 3.8: one long gap among two hundred tokens passes the test of the paper."""
    tokens = steady(tokens=100)
    parked = tokens + [tokens[-1] + 30 + i * 0.05 for i in range(150)]
    figures = measure(run_of(answered(parked), end_s=60.0), TARGETS)
    assert figures["attainment_p99_gap"] == 1.0
    assert figures["attainment_worst_gap"] == 0.0
    assert figures["max_worst_gap_ms"] == pytest.approx(30_000)
    assert figures["goodput_share"] == 0.0
    assert figures["token_goodput_share"] == pytest.approx(100 / 250)


def test_a_gap_still_open_at_the_end_is_a_gap() -> None:
    figures = measure(run_of(answered([1.0, 1.1], output_tokens=50), end_s=41.1), TARGETS)
    assert figures["max_worst_gap_ms"] == pytest.approx(40_000)
    assert figures["max_itl_ms"] == pytest.approx(100)  # bench serve's: between tokens that came
    assert figures["completed"] == 0
    assert figures["mean_e2el_ms"] is None


def test_early_tokens_leave_slack_to_the_next_ones() -> None:
    """Token k is due at arrival + TTFT + k * TBT: a gap of 0.5 s after an early start is in time."""
    tokens = [0.1, 0.2, 0.7, 0.8]
    assert measure(run_of(answered(tokens)), TARGETS)["goodput_share"] == 1.0
    assert measure(run_of(answered(tokens)), TARGETS)["attainment_worst_gap"] == 0.0


@pytest.mark.parametrize(
    ("slo", "in_time"),
    [
        (Slo(ttft_s=0.5), 0.0),  # nothing is in time once the first token is late
        (Slo(ttft_s=2.0), 1.0),
        (Slo(tbt_s=0.15), 2 / 3),  # counted from the first token, which itself has no deadline
    ],
)
def test_half_a_promise(slo: Slo, in_time: float) -> None:
    figures = measure(run_of(answered([1.0, 1.1, 1.9])), slo)
    assert figures["token_goodput_share"] == pytest.approx(in_time)


def test_without_a_promise_nothing_is_judged_by_it() -> None:
    figures = measure(run_of(answered(steady())), Slo())
    judged = ("request_goodput", "goodput_share", "token_goodput_share", "attainment_p99_gap", "attainment_worst_gap")
    assert [figures[key] for key in judged] == [None] * 5


def test_offline_work_has_an_age_and_no_deadline() -> None:
    late = answered([50.0], lane="offline", client="batch")
    unfinished = answered([], output_tokens=3, lane="offline", client="batch")
    figures = measure(run_of(answered(steady()), late, unfinished, end_s=80.0), TARGETS)
    assert figures["goodput_share"] == 1.0
    assert figures["lanes"]["offline"]["max_age_s"] == 80.0
    assert figures["lanes"]["offline"]["total_token_throughput"] == pytest.approx(11 / 80)


def test_refused_requests_fail_and_do_not_wait() -> None:
    refused = RequestRecord(SimRequest("", 0.0, 10, 5), refused=True)
    figures = measure(run_of(answered(steady()), refused), TARGETS)
    assert (figures["refused"], figures["failed"], figures["never_started"]) == (1, 1, 0)
    assert figures["goodput_share"] == 0.5
    assert figures["max_wait_ms"] == pytest.approx(500)


def test_requests_of_the_warm_up_are_not_judged_but_were_served() -> None:
    slow, quick = answered([9.0, 9.5]), answered([5.5], arrival_s=5.0)
    figures = measure(run_of(slow, quick), TARGETS, warmup_s=2.0)
    assert (figures["num_requests"], figures["max_ttft_ms"], figures["duration"]) == (1, 500.0, 8.0)
    assert figures["clients"][0]["service"] == 10 + 4 + 10 + 2


def test_the_service_difference_needs_a_load_of_some_length() -> None:
    """One client gets all it asks for; the other asks for as much and gets nothing."""
    requests = [answered([t + 1.0, t + 2.0], arrival_s=t, client="served") for t in range(0, 600, 2)]
    requests += [answered([], output_tokens=2, arrival_s=t, client="starved") for t in range(0, 600, 2)]
    difference = measure(run_of(*requests, end_s=620.0), Slo())["fairness"]["service_difference"]
    assert difference["mean"] == pytest.approx(14 / 2, rel=0.05)  # all of what it asked for, per second
    assert measure(run_of(*requests[:5]), Slo())["fairness"]["service_difference"] is None


def test_requests_that_come_after_the_end_are_not_judged() -> None:
    assert measure(run_of(answered([], arrival_s=11.0, output_tokens=5)), TARGETS)["num_requests"] == 0


def test_the_error_of_the_prediction_is_over_the_steps_that_had_one() -> None:
    steps = StepLog(array("d", [0, 1, 2]), array("d", [1.0, 1.0, 2.0]), array("d", [math.nan, 1.1, 1.0]))
    steps.prefill_tokens, steps.decodes = array("l", [100, 0, 0]), array("l", [0, 3, 3])
    figures = measure(run_of(steps=steps), Slo())["steps"]
    assert (figures["steps"], figures["predicted_steps"], figures["busy_s"]) == (3, 2, 4.0)
    assert figures["mean_prediction_error"] == pytest.approx((0.1 + 0.5) / 2)
    assert (figures["prefill_tokens"], figures["decodes"]) == (100, 6)


def test_the_record_is_json_of_plain_numbers_even_when_nothing_happened() -> None:
    for run in (run_of(), run_of(answered(steady()), answered([], output_tokens=4))):
        figures = measure(run, TARGETS)
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_page_on_the_simulator_names_every_figure() -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text(encoding="utf-8")
    figures = measure(run_of(answered(steady())), TARGETS)
    names = {
        re.sub(r"^(mean|median|std|max|p\d\d)_(?=.*_(ms|s)$)", "", key) for key in (*figures, *figures["fairness"])
    }
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"`{name}." not in page] == []
