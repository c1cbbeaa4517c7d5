"""Online and offline on one GPU: hybrid beside HyGen and HyGen*, judged on a window that none of them was tuned on.

    python -m benchmarks.lanes [--quick] [--only RATE ...] [--check] [--workers N] [--out FILE]

HyGen's setting (`paper_hygen`): Llama-2-7B on an A100-40, Azure conversation online, endless arXiv prompts offline, a
target of so much above the mean or the P99 TBT of online alone.  HyGen and HyGen* have one knob each, found by the same
search on the window before.  Hybrid is told the target and not tuned: `slo.online.slowdown` is the tolerance of the
mean, `slo.online.tbt_s` (strict) the P99 of online alone on the window before with the tolerance.  The bound is what a
clairvoyant could do at most, without any want of memory and if reading KV cost nothing.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from benchmarks.papers.hygen_judged import judged
from benchmarks.papers.hygen_search import SEED, Search, Target

RATES = (0.5, 1.0, 2.0, 3.0)
TARGETS = tuple(Target(metric, tolerance) for metric in ("mean", "p99") for tolerance in (0.05, 0.1, 0.2, 0.5))
PEERS = ("hygen", "hygen_star")
HYBRID = {"mean": "hybrid slowdown", "p99": "hybrid gap"}
KEPT = 0.01  # how far above the tolerance a target counts as kept
LEAST, LEAST_MEAN = 0.98, 1.3


def main() -> int:
    given = arguments("lanes", __doc__.splitlines()[0], [f"{rate:g}" for rate in RATES])
    rates: tuple[float, ...] = (3.0,) if given.quick else RATES
    targets, window_s = (TARGETS[2:3], 40.0) if given.quick else (TARGETS, 300.0)
    if given.only:
        rates = tuple(rate for rate in rates if f"{rate:g}" in given.only)
    policies = ("sarathi", *PEERS, *(HYBRID[m] for m in HYBRID if any(t.metric == m for t in targets)))
    searches = [Search(p, qps, _targets_of(p, targets), window_s) for qps in reversed(rates) for p in policies]
    watch = Stopwatch()
    outcomes = run_all(judged, searches, given.workers)
    results = {search.name: found for search, (found, _) in zip(searches, outcomes, strict=True)}
    timing = {search.name: spent for search, (_, spent) in zip(searches, outcomes, strict=True)}
    cells = [(qps, target) for qps in rates for target in targets]
    print(f"HyGen's setting, judged on the next {window_s:g} s, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(results, qps, target) for qps, target in cells]))
    checks = [] if given.quick else list(_checks(results, cells))  # the quick window is too short for a claim
    told = {"seed": SEED, "window_s": window_s, "searches": results}
    return finish(given, told, {"wall_s": watch.seconds, "searches": timing}, checks)


def _targets_of(policy: str, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    return tuple(t for t in targets if policy not in HYBRID.values() or HYBRID[t.metric] == policy)


def _cell(results: Mapping[str, Any], qps: float, policy: str, target: Target) -> dict[str, Any]:
    found: dict[str, Any] = results[f"{qps:g} req/s {policy}"][target.name]
    return found


def _kept(cell: Mapping[str, Any], target: Target) -> bool:
    return bool(cell["ratio"] <= 1 + target.tolerance + KEPT)


def _gain(results: Mapping[str, Any], qps: float, target: Target) -> float | None:
    """Hybrid's offline tokens relative to the better of the peers that keep the target; None if none does."""
    peers = [cell for peer in PEERS if _kept(cell := _cell(results, qps, peer, target), target)]
    best = max((cell["offline"] for cell in peers), default=0.0)
    return _cell(results, qps, HYBRID[target.metric], target)["offline"] / best if best else None


def _row(results: Mapping[str, Any], qps: float, target: Target) -> dict[str, str]:
    hygen, star = (_cell(results, qps, peer, target) for peer in PEERS)
    hybrid, gain = _cell(results, qps, HYBRID[target.metric], target), _gain(results, qps, target)
    bound = _cell(results, qps, "sarathi", target)["bound"]
    alone_ms = results[f"{qps:g} req/s sarathi"]["alone"]["mean_ttft_ms"]

    def shown(cell: Mapping[str, Any]) -> str:
        return f"{cell['offline']:.0f} ({cell['ratio'] - 1:+.1%}{'' if _kept(cell, target) else ' missed'})"

    return {
        "req/s, target": f"{qps:g} {target.name}",
        "HyGen tok/s (SLO)": shown(hygen),
        "HyGen* tok/s (SLO)": shown(star),
        "hybrid tok/s (SLO)": shown(hybrid),
        "x better peer": "-" if gain is None else f"{gain:.2f}",
        "of the bound": f"{hybrid['offline'] / bound:.0%}",
        "mean TTFT alone": f"{alone_ms:.0f} ms",
        "HyGen": f"{hygen['mean_ttft_ms']:.0f} ms",
        "hybrid": f"{hybrid['mean_ttft_ms']:.0f} ms",
    }


def _checks(results: Mapping[str, Any], cells: list[tuple[float, Target]]) -> Iterator[Check]:
    over = {
        f"{qps:g} req/s {t.name}": _cell(results, qps, HYBRID[t.metric], t)["ratio"] - 1 - t.tolerance
        for qps, t in cells
    }
    worst = max(over, key=lambda name: over[name])
    said = f"{over[worst]:+.1%} ({worst})"
    yield Check("hybrid farthest above a tolerance", said, f"at most {KEPT:.0%}", over[worst] <= KEPT)
    gains = {f"{qps:g} req/s {t.name}": gain for qps, t in cells if (gain := _gain(results, qps, t)) is not None}
    if gains:
        least = min(gains, key=lambda name: gains[name])
        said = f"{gains[least]:.2f}x ({least})"
        yield Check("hybrid / better peer, least", said, f"at least {LEAST:g}x", gains[least] >= LEAST)
    finite = [
        math.log(gain)
        for qps, t in cells
        if _cell(results, qps, "hygen", t)["finite"] and (gain := _gain(results, qps, t)) is not None
    ]
    if finite:
        mean = math.exp(statistics.fmean(finite))
        name = f"hybrid / better peer, geometric mean of {len(finite)} cells with a finite budget"
        yield Check(name, f"{mean:.2f}x", f"at least {LEAST_MEAN:g}x", mean >= LEAST_MEAN)


if __name__ == "__main__":
    sys.exit(main())
