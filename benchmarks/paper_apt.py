"""Apt-Serve's attainment of two targets under load (SIGMOD'25) on the real scheduler classes.

    python -m benchmarks.paper_apt [--quick] [--check] [--workers N] [--out FILE]

OPT-13B on an A100-40, 2,048 tokens per step; conversation lengths, gamma arrivals, both targets one second.  `apt` is
the paper's policy with vLLM's own cache, all in KV (`cache: off`).  The reference figures are
those of a small simulation of our own; the paper itself gives one cell of this table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from benchmarks.papers.apt_runs import CONTENDERS, SEED, Run, measured
from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table

RATES, CVS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0), (1.0, 5.0, 10.0)
GOAL = 0.70  # effective throughput: the highest rate that so many requests survive

# (CV, req/s) -> requests within both targets: FCFS, the greedy with KV only
REFERENCE: dict[tuple[float, float], tuple[float, float]] = {
    (1, 1): (1.00, 1.00),
    (1, 2): (0.88, 0.99),
    (1, 3): (0.15, 0.92),
    (1, 4): (0.10, 0.87),
    (1, 6): (0.09, 0.79),
    (1, 8): (0.10, 0.78),
    (5, 1): (0.96, 0.99),
    (5, 2): (0.19, 0.86),
    (5, 3): (0.07, 0.77),
    (5, 4): (0.07, 0.74),
    (5, 6): (0.07, 0.74),
    (5, 8): (0.07, 0.67),
    (10, 1): (0.39, 0.78),
    (10, 2): (0.17, 0.73),
    (10, 3): (0.05, 0.66),
    (10, 4): (0.05, 0.65),
    (10, 6): (0.04, 0.57),
    (10, 8): (0.03, 0.61),
}
PUBLISHED = {(1, 6): 0.657}  # the paper's own, KV only
REFERENCE_WORST = {3.0: (0.93, 0.87), 6.0: (0.81, 0.61)}  # at CV 1: by the 99th percentile, by the worst gap
REFERENCE_GAIN = {1.0: 3.6, 5.0: 5.0, 10.0: 2.5}  # effective throughput relative to FCFS, at least

COLLAPSE = 0.50  # points that FCFS loses within one unit of rate
SLOW = 0.20  # points that the greedy loses within one unit of rate, at most
NO_BETTER = 0.95  # mean end-to-end time relative to FCFS in overload, at least
NEAR = 0.10  # points around the reference
GAIN = 0.75  # of the reference's gain
OVERLOAD = 3.0
NOT_YET = (
    "the hidden cache adds at most 10 points to the greedy with KV only (the hidden cache)",
    "hybrid's attainment by worst gap against apt's (the admission gate and the accountable value of the composition)",
)


def main() -> int:
    given = arguments("paper_apt", __doc__.splitlines()[0])
    rates, cvs, requests = ((1.0, 3.0), (1.0,), 250) if given.quick else (RATES, CVS, 800)
    cells = [(cv, qps) for cv in cvs for qps in rates]
    runs = [Run(qps, cv, policy, requests) for cv, qps in cells for policy in CONTENDERS]
    watch = Stopwatch()
    outcomes = run_all(measured, runs, given.workers)
    results = {run.name: found for run, (found, _) in zip(runs, outcomes, strict=True)}
    timing = {run.name: spent for run, (_, spent) in zip(runs, outcomes, strict=True)}
    print(f"Apt-Serve's load, {requests} requests a run, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(results, cv, qps) for cv, qps in cells]) + "\n")
    if not given.quick:
        print(table([_throughput_row(results, cv) for cv in cvs]) + "\n")
    findings = [] if given.quick else list(_findings(results))
    print("\n".join([*(f"found: {line}" for line in findings), *(f"not yet: {claim}" for claim in NOT_YET)]))
    told = {
        "paper": "Apt-Serve, SIGMOD'25, arXiv 2504.07494",
        "seed": SEED,
        "runs": results,
        "findings": findings,
        "not_yet": list(NOT_YET),
    }
    checks = list(_quick_checks(results) if given.quick else _checks(results))
    return finish(given, told, {"wall_s": watch.seconds, "runs": timing}, checks)


def _of(results: Mapping[str, Any], cv: float, qps: float, policy: str) -> dict[str, Any]:
    return results[Run(qps, cv, policy).name]


def _row(results: Mapping[str, Any], cv: float, qps: float) -> dict[str, str]:
    fcfs, apt, hybrid = (_of(results, cv, qps, policy) for policy in CONTENDERS)
    reference, published = REFERENCE[(cv, qps)], PUBLISHED.get((cv, qps))
    return {
        "load": f"CV {cv:g}, {qps:g} req/s",
        "fcfs": f"{fcfs['p99']:.0%}",
        "(reference)": f"{reference[0]:.0%}",
        "apt": f"{apt['p99']:.0%}",
        "(reference) ": f"{reference[1]:.0%}",
        "(paper)": f"{published:.1%}" if published else "-",
        "hybrid": f"{hybrid['p99']:.0%}",
        "by worst gap: fcfs": f"{fcfs['worst']:.0%}",
        "apt ": f"{apt['worst']:.0%}",
        "hybrid ": f"{hybrid['worst']:.0%}",
        "mean worst gap: fcfs": f"{fcfs['mean_worst_gap_s']:.1f} s",
        " apt": f"{apt['mean_worst_gap_s']:.1f} s",
        " hybrid": f"{hybrid['mean_worst_gap_s']:.1f} s",
        "apt/fcfs: e2e": f"{apt['mean_e2e_s'] / fcfs['mean_e2e_s']:.2f}",
        "makespan": f"{apt['makespan_s'] / fcfs['makespan_s']:.2f}",
        "recomputed: fcfs": f"{fcfs['recomputed_share']:.0%}",
        " apt ": f"{apt['recomputed_share']:.0%}",
    }


def _throughput_row(results: Mapping[str, Any], cv: float) -> dict[str, str]:
    fcfs, apt = (effective_qps(results, cv, policy, "p99") for policy in ("fcfs", "apt"))
    worst = {policy: effective_qps(results, cv, policy, "worst") for policy in CONTENDERS}
    return {
        f"effective req/s at {GOAL:.0%}": f"CV {cv:g}",
        "fcfs": _rate(fcfs),
        "apt": _rate(apt),
        "gain": f"{apt / fcfs:.1f}x",
        "(reference)": f"{REFERENCE_GAIN[cv]:g}x or more",
        **{f"by worst gap: {policy}" if policy == "fcfs" else policy + " ": _rate(q) for policy, q in worst.items()},
    }


def _rate(qps: float) -> str:
    return f"{qps:.1f} or more" if qps >= RATES[-1] else f"{qps:.1f}"


def effective_qps(results: Mapping[str, Any], cv: float, policy: str, kind: str) -> float:
    """The highest rate with the goal's share within both targets, linear between the rates that were run."""
    shares = [1.0, *(_of(results, cv, qps, policy)[kind] for qps in RATES)]
    best = 0.0
    for (low, a), (high, b) in pairwise(zip((0.0, *RATES), shares)):
        if b >= GOAL:
            best = high
        elif a >= GOAL:
            best = low + (high - low) * (a - GOAL) / (a - b)
    return best


def _least_e2e(results: Mapping[str, Any], cv: float) -> float:
    """The greedy's mean end-to-end time relative to FCFS, in overload, where it is best."""
    return min(
        _of(results, cv, qps, "apt")["mean_e2e_s"] / _of(results, cv, qps, "fcfs")["mean_e2e_s"]
        for qps in RATES
        if qps >= OVERLOAD
    )


def _findings(results: Mapping[str, Any]) -> Iterator[str]:
    """What the reference, whose end-to-end times are those of CV 1, does not say.

    Value per block serves small requests first, which shortens the mean as shortest-first does.
    """
    for cv in CVS[1:]:
        less = 1 - _least_e2e(results, cv)
        if less > 1 - NO_BETTER:
            yield f"CV {cv:g}: the greedy's mean end-to-end time is up to {less:.0%} better than FCFS's"


def _checks(results: Mapping[str, Any]) -> Iterator[Check]:
    def loss(policy: str, cv: float, kind: str) -> float:
        """Points lost per unit of rate where it is worst."""
        return max(
            (_of(results, cv, a, policy)[kind] - _of(results, cv, b, policy)[kind]) / (b - a)
            for a, b in pairwise(RATES)
        )

    lost = loss("fcfs", 1.0, "ttft")
    yield Check("CV 1: FCFS's TTFT attainment collapses", f"-{lost:.0%}", f"{COLLAPSE:.0%} or more", lost >= COLLAPSE)
    least = _least_e2e(results, 1.0)
    name = f"CV 1: the greedy's mean end-to-end time is no better, from {OVERLOAD:g} req/s on"
    yield Check(name, f"{least:.2f} of fcfs's", f"at least {NO_BETTER:g}", least >= NO_BETTER)
    for cv in CVS:
        lost = loss("apt", cv, "p99")
        name = f"CV {cv:g}: the greedy degrades slowly, per unit of rate"
        yield Check(name, f"-{lost:.0%}", f"{SLOW:.0%} at most", lost <= SLOW)
        gain = effective_qps(results, cv, "apt", "p99") / effective_qps(results, cv, "fcfs", "p99")
        wanted = f"{GAIN:.0%} of {REFERENCE_GAIN[cv]:g}x or more"
        name = f"CV {cv:g}: effective throughput against FCFS"
        yield Check(name, f"{gain:.1f}x", wanted, gain >= GAIN * REFERENCE_GAIN[cv])
    for qps, reference in REFERENCE_WORST.items():
        found = [_of(results, 1.0, qps, "apt")[kind] for kind in ("p99", "worst")]
        holds = all(abs(a - b) <= NEAR for a, b in zip(found, reference, strict=True))
        said = f"{found[0]:.0%} -> {found[1]:.0%}"
        wanted = f"{reference[0]:.0%} -> {reference[1]:.0%}, each within {NEAR:.0%}"
        yield Check(f"CV 1, {qps:g} req/s: the same judged by the worst gap", said, wanted, holds)


def _quick_checks(results: Mapping[str, Any]) -> Iterator[Check]:
    fcfs, apt = (_of(results, 1.0, 3.0, policy) for policy in ("fcfs", "apt"))
    more = apt["p99"] - fcfs["p99"]
    yield Check("3 req/s: apt's attainment above fcfs's", f"{100 * more:+.0f} points", "20 or more", more >= 0.2)
    said = f"{apt['worst']:.0%} of {apt['p99']:.0%}"
    yield Check("3 req/s: apt judged by the worst gap", said, "less", apt["worst"] < apt["p99"])


if __name__ == "__main__":
    sys.exit(main())
