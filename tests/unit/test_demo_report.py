"""The demo's table, checks, JSON and plot, from runs made by hand."""

import json

import pytest

from benchmarks.demo import plot, report, results
from benchmarks.demo.client import Outcome, Replay
from benchmarks.demo.load import BATCH, FLOOD, QUIET, Item
from benchmarks.demo.run import PolicySteps, Run
from benchmarks.demo.server import parse_metrics, total

GOOD_POLICY = PolicySteps(errors=0, contended=100, planned=100)


def outcome(tenant, due_s, first_s, tokens=4, error=None):
    lane = "offline" if tenant == BATCH else "online"
    times = [(first_s + i, 1) for i in range(tokens)]
    return Outcome(Item(tenant, lane, due_s, "?", 4), due_s, 10, times, error)


def made(scheduler, quiet_ttft_s, quiet_burst_requests, policy=GOOD_POLICY, offline_tokens=4):
    flood = [
        outcome(QUIET, 1.0, 1.0 + quiet_ttft_s),
        outcome(FLOOD, 0.0, 30.0),
        outcome(BATCH, 0.0, 40.0, offline_tokens),
    ]
    # One request per second from each tenant in turn; both have one waiting until second 60.
    tenants = [QUIET] * quiet_burst_requests + [FLOOD] * (60 - quiet_burst_requests)
    burst = [outcome(t, 0.0, float(i + 1)) for i, t in enumerate(tenants)]
    burst += [outcome(QUIET, 0.0, 60.5), outcome(FLOOD, 0.0, 60.5)]
    return Run(scheduler, (), 100.0, Replay(flood, 0.1), Replay(burst, 0.1), policy, ["Paris."] * 3)


def failed(stock, hybrid):
    return {c.name for c in report.checks(stock, hybrid, report.FULL_TOLERANCES) if not c.ok}


STOCK = made("stock", quiet_ttft_s=20, quiet_burst_requests=20)


def test_a_good_run_passes_every_check():
    assert failed(STOCK, made("hybrid", quiet_ttft_s=1.9, quiet_burst_requests=30)) == set()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"quiet_ttft_s": 2.1}, {"quiet tenant's p99 TTFT, hybrid / stock"}),
        ({"quiet_burst_requests": 20}, {"hybrid: share of quiet", "hybrid: share of flood"}),
        ({"policy": PolicySteps(1, 100, 100)}, {"hybrid: policy errors"}),
        ({"policy": PolicySteps(None, 100, 100)}, {"hybrid: policy errors"}),
        ({"policy": PolicySteps(0, 100, 89)}, {"hybrid: steps with two live clients that ran a plan"}),
        ({"policy": PolicySteps(0, 0, 0)}, {"hybrid: steps with two live clients that ran a plan"}),
        ({"offline_tokens": 3}, {"hybrid: every request finished", "hybrid: offline work finished"}),
    ],
)
def test_each_broken_promise_fails_its_own_check(changes, names):
    assert failed(STOCK, made("hybrid", **{"quiet_ttft_s": 1.0, "quiet_burst_requests": 30, **changes})) == names


def test_lost_throughput_and_a_short_contest_fail():
    hybrid = made("hybrid", 1.0, 30)
    hybrid.burst.outcomes.append(outcome(FLOOD, 0.0, 75.0))
    assert failed(STOCK, hybrid) == {"total tokens/s, hybrid / stock"}
    short = made("hybrid", 1.0, 30)
    short.burst = Replay([outcome(QUIET, 0.0, 20.0), outcome(FLOOD, 0.0, 20.0)], 0.1)
    assert "hybrid: both tenants backlogged" in failed(STOCK, short)


def test_an_error_is_named():
    hybrid = made("hybrid", 1.0, 30)
    hybrid.flood.outcomes[0].error = "APIError: no"
    values = {c.name: c.value for c in report.checks(STOCK, hybrid, report.FULL_TOLERANCES)}
    assert "first: APIError: no" in values["hybrid: every request finished"]


def test_the_table_has_one_column_per_scheduler():
    hybrid = made("hybrid", 1.0, 30)
    text = report.table(STOCK, hybrid)
    header = next(line for line in text.splitlines() if line.strip())
    assert header.split() == ["stock", "hybrid"]
    shares = [line for line in text.splitlines() if "share of the service" in line]
    assert shares[0].split()[-2:] == [f"{run.contention.share(QUIET):.2f}" for run in (STOCK, hybrid)]
    assert len({len(line) for line in text.splitlines() if line.startswith("    ")}) == 1


def test_the_json_says_what_the_table_says_and_keeps_lists_on_one_line(tmp_path):
    runs = (STOCK, made("hybrid", 1.0, 30))
    document = results.document({"seed": 7}, runs, report.checks(*runs, report.FULL_TOLERANCES))
    path = tmp_path / "demo.json"
    results.write(path, document)
    read = json.loads(path.read_text())
    assert read == json.loads(json.dumps(document))
    assert read["seed"] == 7
    stock = read["schedulers"]["stock"]
    assert stock["flood"]["tenants"][QUIET]["p99_ttft_ms"] == pytest.approx(20_000)
    assert sum(stock["burst"]["service_share"].values()) == pytest.approx(1)
    assert len(stock["burst"]["tenants"][FLOOD]["ttfts"]) == 41
    assert path.read_text().count("\n") < 500


def test_the_plot_is_a_picture(tmp_path):
    path = tmp_path / "demo.png"
    plot.draw(path, (STOCK, made("hybrid", 1.0, 30)), "a machine")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_metrics_are_summed_over_engines_and_selected_by_label():
    samples = parse_metrics(
        "# HELP x y\n"
        'steps_total{engine="0",mode="plan",contended="true"} 3.0\n'
        'steps_total{engine="1",mode="plan",contended="true"} 4.0\n'
        'steps_total{engine="0",mode="stock",contended="false"} 1e2\n'
        "up 1.0\n"
    )
    assert total(samples, "steps_total", contended="true") == 7
    assert total(samples, "steps_total") == 107
    assert total(samples, "up") == 1
    assert total(samples, "errors_total") is None
