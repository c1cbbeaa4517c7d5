"""What the paper benchmarks are made of: the capacity search, the figures' checks, a file that the seed decides."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.papers.common import Check, finish, table
from benchmarks.papers.sarathi_capacity import Cell, highest, rate_of
from benchmarks.papers.vtc_checks import all_checks
from benchmarks.papers.vtc_runs import all_runs, contender, line, quick_runs
from benchmarks.token_budget import BUDGETS, CREDIT, DEVICES, HYBRID, Search
from vllm_hybrid.config import load_config
from vllm_hybrid.sim.suites import WORKLOADS


@pytest.mark.parametrize("start", [0, 1, 17, 40, 41, 90])
def test_the_search_ends_at_the_highest_rate_that_holds_wherever_it_begins(start: int) -> None:
    tried: list[int] = []

    def holds(rung: int) -> bool:
        tried.append(rung)
        return rung <= 40

    assert highest(holds, start) == 40
    assert len(set(tried)) < 30


def test_neighbouring_rates_are_one_step_apart() -> None:
    assert rate_of(8, 1.04) / rate_of(7, 1.04) == pytest.approx(1.04)


def found(**figures: Any) -> dict[str, Any]:
    plain = {"shares": [0.5, 0.5], "throughput": 893.0, "shortened": False, "worst_gap": 9000.0}
    return {**plain, "gap_linearity": 1.0, "gap_slope": 440.0, **figures}


def test_a_share_off_by_more_than_its_tolerance_fails() -> None:
    fcfs = found(shares=[0.333, 0.667], throughput=876.0)
    good = all_checks({"overload/vtc": found(shares=[0.496, 0.504]), "overload/fcfs": fcfs})
    assert good and all(check.holds for check in good)
    bad = all_checks({"overload/vtc": found(shares=[0.48, 0.52], throughput=940.0), "overload/fcfs": fcfs})
    assert [check.name for check in bad if not check.holds] == [
        "shares overload/vtc",
        "throughput overload/vtc",
        "1 overload: first client's share under vtc",
    ]


def test_claims_whose_runs_were_not_made_are_left_out() -> None:
    assert all_checks({}) == []
    names = [check.name for check in all_checks({"overload/vtc": found(shortened=True)})]
    assert names == ["shares overload/vtc"]


def test_a_gap_that_grows_steadily_is_a_line() -> None:
    slope, linearity = line([440.0 * 6 * (tick + 1) for tick in range(100)], 6.0)
    assert (slope, linearity) == pytest.approx((440.0, 1.0))
    assert line([5.0] * 10, 6.0) == (0.0, 0.0)


@pytest.mark.parametrize("run", [*all_runs(), *quick_runs()], ids=lambda run: run.name)
def test_every_run_has_a_workload_and_settings_that_the_schema_takes(run: Any) -> None:
    assert run.suite in WORKLOADS and run.parameters.keys() <= WORKLOADS[run.suite].parameters.keys()
    load_config(contender(run.policy, WORKLOADS[run.suite].clients).hybrid)


@pytest.mark.parametrize("model", DEVICES)
def test_fixed_budgets_are_stock_engines_and_hybrid_is_told_the_target_alone(model: str) -> None:
    cell = Cell(DEVICES[model], model, "chat", 0.1, 0, 64, (0, 0, 0))
    for budget in BUDGETS:
        who = Search(cell, budget, 1.04).contender
        assert who.stock == "fcfs" and who.engine == {"step_tokens": budget}
    for budget, gap in ((HYBRID, "strict"), (CREDIT, "deadline")):
        hybrid = Search(cell, budget, 1.04).contender
        told = load_config(hybrid.hybrid).slo.online
        assert (told.tbt_s, told.gap) == (0.1, gap) and hybrid.engine == {"step_tokens": max(BUDGETS)}
        assert hybrid.hybrid.keys() == {"slo"}


def test_results_hold_no_clock_and_the_exit_status_tells_of_a_failed_check(tmp_path: Path) -> None:
    given = Namespace(out=tmp_path / "paper.json", check=True)
    checks = [Check("holds", "1", "1", True), Check("fails", "2", "1", False)]
    assert finish(given, {"runs": {"a": {"x": 1.0}}}, {"wall_s": 3.0}, checks) == 1
    assert finish(Namespace(out=None, check=True), {}, {}, checks[:1]) == 0
    assert finish(Namespace(out=None, check=False), {}, {}, checks) == 0
    written = json.loads((tmp_path / "paper.json").read_text())
    assert written["runs"] == {"a": {"x": 1.0}} and set(written["checks"]) == {"holds", "fails"}
    assert "wall_s" not in (tmp_path / "paper.json").read_text()
    assert json.loads((tmp_path / "paper.timing.json").read_text()) == {"wall_s": 3.0}


def test_a_table_is_aligned() -> None:
    lines = table([{"suite": "a", "tokens/s": "5"}, {"suite": "long name", "tokens/s": "1,000"}]).splitlines()
    assert lines == ["suite      tokens/s", "a                 5", "long name     1,000"]
