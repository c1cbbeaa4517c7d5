"""What a policy that was tuned on one load does on another: HyGen's constant budget beside hybrid's slowdown.

    python -m benchmarks.lanes_shift [--quick] [--only RATE ...] [--check] [--workers N] [--out FILE]

HyGen's setting (`paper_hygen`), a target of so much above the mean TBT of online alone.  The knob is found on the first
window of the trace for HyGen, and is the tolerance itself for hybrid; then, unchanged, it is judged on a window of the
trace's other half and on the next window with ten times the requests in one of its minutes, each against the same
requests alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from benchmarks.papers.hygen_judged import knob_of
from benchmarks.papers.hygen_search import SEED, Bench, Search, Target

RATES = (1.0, 2.0)
TARGETS = tuple(Target("mean", tolerance) for tolerance in (0.05, 0.1, 0.2))
POLICIES = ("hygen", "hybrid slowdown")
WINDOW_S, TRACE_S = 300.0, 3_500.0
BURST = 10.0
KEPT = 0.01  # how far above the tolerance a target counts as kept
TRACE_QPS = 5.53  # of the trace's hour as it was


def shifts(qps: float) -> dict[str, tuple[int, float]]:
    """Name -> window and burst."""
    windows = TRACE_S * TRACE_QPS / qps / WINDOW_S
    return {"tuned": (0, 1.0), "other half": (round(0.75 * windows), 1.0), "10x burst": (1, BURST)}


def shifted(search: Search) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy's knob for each target, and what it does on each load."""
    bench = Bench(search)
    alone = {name: bench.run("sarathi", None, *where) for name, where in shifts(search.qps).items()}
    found: dict[str, Any] = {"alone": alone}
    for target in search.targets:
        knob, _ = knob_of(bench, search, target, alone["tuned"])
        found[target.name] = {"knob": knob}
        for name, where in shifts(search.qps).items():
            there = alone[name] if knob is None else bench.run(search.policy, knob, *where)
            kept = ("offline", "mean_ttft_ms", "preemptions", "recomputed_tokens")
            found[target.name][name] = {
                "ratio": there[target.metric] / alone[name][target.metric],
                **{key: there[key] for key in kept},
            }
    return found, {"cpu_s": bench.cpu_s, "runs": len(bench.runs)}


def main() -> int:
    given = arguments("lanes_shift", __doc__.splitlines()[0], [f"{rate:g}" for rate in RATES])
    rates = RATES[1:] if given.quick else tuple(r for r in RATES if not given.only or f"{r:g}" in given.only)
    targets = TARGETS[2:] if given.quick else TARGETS
    searches = [Search(policy, qps, targets, WINDOW_S) for qps in rates for policy in POLICIES]
    watch = Stopwatch()
    outcomes = run_all(shifted, searches, given.workers)
    results = {search.name: found for search, (found, _) in zip(searches, outcomes, strict=True)}
    timing = {search.name: spent for search, (_, spent) in zip(searches, outcomes, strict=True)}
    print(f"A knob found on one window, tried on others, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(results, qps, target) for qps in rates for target in targets]))
    checks = [] if given.quick else list(_checks(results, rates, targets))
    told = {"seed": SEED, "window_s": WINDOW_S, "burst": BURST, "searches": results}
    return finish(given, told, {"wall_s": watch.seconds, "searches": timing}, checks)


def _row(results: Mapping[str, Any], qps: float, target: Target) -> dict[str, str]:
    row = {"req/s, target": f"{qps:g} {target.name}"}
    for name in shifts(qps):
        for policy, called in zip(POLICIES, ("HyGen", "hybrid"), strict=True):
            there = results[f"{qps:g} req/s {policy}"][target.name][name]
            kept = "" if there["ratio"] <= 1 + target.tolerance + KEPT else " missed"
            row[f"{name}: {called}"] = f"{there['ratio'] - 1:+.1%}{kept} ({there['offline']:.0f})"
    return row


def _checks(results: Mapping[str, Any], rates: tuple[float, ...], targets: tuple[Target, ...]) -> Iterator[Check]:
    for name in list(shifts(1.0))[1:]:
        over = {
            policy: {
                f"{qps:g} req/s {t.name}": results[f"{qps:g} req/s {policy}"][t.name][name]["ratio"] - 1 - t.tolerance
                for qps in rates
                for t in targets
            }
            for policy in POLICIES
        }
        ours, theirs = (over[policy] for policy in reversed(POLICIES))
        worst = max(ours, key=lambda cell: ours[cell])
        said = f"{ours[worst]:+.1%} ({worst})"
        yield Check(f"{name}: hybrid farthest above a tolerance", said, f"at most {KEPT:.0%}", ours[worst] <= KEPT)
        missed = sum(value > KEPT for value in theirs.values())
        said = f"{missed} of {len(theirs)} cells, up to {max(theirs.values()):+.1%}"
        yield Check(f"{name}: the constant budget misses", said, "at least one", missed > 0)


if __name__ == "__main__":
    sys.exit(main())
