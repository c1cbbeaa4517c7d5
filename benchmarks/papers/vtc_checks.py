"""The claims of the VTC paper, each with its tolerance, checked on the measured figures.

Numbers in the names follow the order of `all_checks`; a claim whose runs were not made (`--quick`) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from benchmarks.papers.common import Check
from benchmarks.papers.vtc_published import ABLATION_TPOT_MS, PUBLISHED
from benchmarks.papers.vtc_runs import DEVICE
from vllm_hybrid.sim.device import load_device

Results = Mapping[str, Mapping[str, Any]]

TOLERANCE = {
    "share": 0.01,  # of a published share, absolute
    "throughput": 0.05,  # of a published throughput, relative
    "linear": 0.98,  # coefficient of determination of a gap that grows linearly
    "slope": 0.10,  # of the published 440 units/s, relative
    "demand": 0.98,  # of what a client below its share asks for
    "same_throughput": 0.03,  # two policies that do the same work
    "phase_share": 0.02,  # of one half
    "billed": 0.02,  # of the service, that moves when recomputed prompts are billed again (reference: .05)
    "tpot": 0.10,  # of a published time per output token, relative
    "gap_of_pool": 1.1,  # worst gap / pool
}
REAL_ORDER = ("rpm5", "rpm10", "rpm15", "rpm20", "vtc oracle", "vtc predicted", "vtc", "rpm30", "lcf", "fcfs")


def all_checks(results: Results) -> list[Check]:
    claims: tuple[tuple[tuple[str, ...], Callable[[Results], Iterator[Check]]], ...] = (
        (("overload/vtc", "overload/fcfs"), _overload),
        (("proportional/vtc", "proportional/fcfs"), _proportional),
        (("on_off_less/vtc", "on_off_overload/vtc"), _on_off),
        (("dist_shift/vtc", "dist_shift/lcf"), _dist_shift),
        (("poisson_short_long_2/vtc", "poisson_short_long_2/vtc no gate"), _short_long_2),
        (("ablation-35000-256/vtc", "ablation-65000-256/vtc"), _pool_size),
        (("poisson_short_long_2/vtc", "poisson_short_long_2/vtc no gate, billed again"), _recompute),
        (("real/vtc", "real/rpm5"), _real),
    )
    checks = [*_published_shares(results), *_published_throughput(results)]
    for needed, claim in claims:
        if all(name in results for name in needed):
            checks += claim(results)
    return checks


def _published_shares(results: Results) -> Iterator[Check]:
    for name, published in PUBLISHED.items():
        if name not in results or published.shares is None:
            continue
        shares = results[name]["shares"]
        worst = max(abs(a - b) for a, b in zip(shares, published.shares, strict=True))
        yield Check(
            f"shares {name}",
            " ".join(f"{share:.3f}" for share in shares),
            " ".join(f"{share:.3f}" for share in published.shares) + f" within {TOLERANCE['share']}",
            worst <= TOLERANCE["share"],
        )


def _published_throughput(results: Results) -> Iterator[Check]:
    for name, published in PUBLISHED.items():
        # A shortened run has another share of ramp-up and drain.
        comparable = published.throughput is not None and published.throughput_comparable
        if name not in results or not comparable or results[name]["shortened"]:
            continue
        assert published.throughput is not None
        throughput = results[name]["throughput"]
        off = throughput / published.throughput - 1
        wanted = f"{published.throughput:,.0f} within {TOLERANCE['throughput']:.0%}"
        holds = abs(off) <= TOLERANCE["throughput"]
        yield Check(f"throughput {name}", f"{throughput:,.0f} tokens/s ({off:+.1%})", wanted, holds)


def _overload(results: Results) -> Iterator[Check]:
    vtc, fcfs = results["overload/vtc"], results["overload/fcfs"]
    yield _between("1 overload: first client's share under vtc", vtc["shares"][0], 0.49, 0.51)
    yield _between("1 overload: first client's share under fcfs", fcfs["shares"][0], 0.32, 0.35)
    bound = 4 * load_device(DEVICE).kv_tokens
    yield _between("1 overload: worst accumulated gap under vtc (2U = 4 pools)", vtc["worst_gap"], 0, bound)
    yield _between("1 overload: gap under fcfs grows linearly (R²)", fcfs["gap_linearity"], TOLERANCE["linear"], 1)
    slope = TOLERANCE["slope"]
    yield _between("1 overload: gap under fcfs per second", fcfs["gap_slope"], 440 * (1 - slope), 440 * (1 + slope))


def _proportional(results: Results) -> Iterator[Check]:
    for policy, low, high in (("vtc", TOLERANCE["demand"], 1.02), ("fcfs", 0.70, 0.80)):
        found = results[f"proportional/{policy}"]
        for client in (0, 1):
            part = found["rates"][client] / found["asked_rates"][client]
            yield _between(f"2 proportional: client {client} gets of its demand under {policy}", part, low, high)


def _on_off(results: Results) -> Iterator[Check]:
    for suite, times in (("on_off_less", 10), ("on_off_overload", 4)):
        vtc, fcfs = results[f"{suite}/vtc"], results[f"{suite}/fcfs"]
        ratio = fcfs["wait_s"][0] / vtc["wait_s"][0]
        yield _between(f"3 {suite}: first client's wait under fcfs / vtc", ratio, times, float("inf"))
        off = vtc["throughput"] / fcfs["throughput"] - 1
        margin = TOLERANCE["same_throughput"]
        yield _between(f"3 {suite}: throughput of vtc against fcfs", off, -margin, margin)


def _dist_shift(results: Results) -> Iterator[Check]:
    margin = TOLERANCE["phase_share"]
    lcf, vtc = (results[f"dist_shift/{policy}"]["shares"][0] for policy in ("lcf", "vtc"))
    yield _between("4 dist_shift: first client's share in phase 2 under lcf", lcf, 0.55, 1)
    yield _between("4 dist_shift: first client's share in phase 2 under vtc", vtc, 0.5 - margin, 0.5 + margin)


def _short_long_2(results: Results) -> Iterator[Check]:
    """The whole work is the same; the mix of the batches over time differs, and only where output is reserved."""
    name = "poisson_short_long_2/"
    gated = results[name + "vtc"]["throughput"] / results[name + "fcfs"]["throughput"] - 1
    free = results[name + "vtc no gate"]["throughput"] / results[name + "stock fcfs"]["throughput"] - 1
    yield _between("5 short_long_2: throughput of vtc against fcfs, gated", gated, -0.14, -0.10)
    yield _between("5 short_long_2: the same without the gate", free, -0.03, 0.03)


def _pool_size(results: Results) -> Iterator[Check]:
    gaps = {(pool, length): results[f"ablation-{pool}-{length}/vtc"]["worst_gap"] for pool, length in ABLATION_TPOT_MS}
    for length in (256, 512, 768):
        small, large = gaps[35_000, length], gaps[65_000, length]
        yield _between(f"6 ablation {length}: worst gap at 65k / at 35k", large / small, 1.0, float("inf"))
    for (pool, length), gap in gaps.items():
        most = TOLERANCE["gap_of_pool"]
        yield _between(f"6 ablation {pool}/{length}: worst gap / pool under vtc", gap / pool, 0, most)
    for (pool, length), published in ABLATION_TPOT_MS.items():
        off = results[f"ablation-{pool}-{length}/vtc"]["mean_tpot_ms"] / published - 1
        margin = TOLERANCE["tpot"]
        yield _between(f"6 ablation {pool}/{length}: TPOT against {published:g} ms", off, -margin, margin)
    if "ablation-65000-256/fcfs" in results:
        ratio = results["ablation-65000-256/fcfs"]["worst_gap"] / gaps[65_000, 256]
        yield _between("6 ablation 65000/256: gap under fcfs / vtc", ratio, 10, float("inf"))


def _recompute(results: Results) -> Iterator[Check]:
    """Billed again, recomputed prompts cost the client that sends them. Without a gate the bound is no claim."""
    name = "poisson_short_long_2/vtc"
    free, again, gated = (results[f"{name}{variant}"] for variant in (" no gate", " no gate, billed again", ""))
    shift = free["shares"][0] - again["shares"][0]
    yield _between("7 short_long_2 without the gate: first client's share", free["shares"][0], 0.49, 0.51)
    yield _between("7 short_long_2 without the gate: preemptions", free["preemptions"], 1, float("inf"))
    yield _between("7 the same, recomputed prompts billed again: share lost", shift, TOLERANCE["billed"], 1)
    yield _between("7 short_long_2 gated: preemptions", gated["preemptions"], 0, 0)
    bound = load_device(DEVICE).kv_tokens * 2
    yield _between("7 short_long_2 gated: worst drift while both wait, against U", gated["worst_drift"], 0, bound)


def _real(results: Results) -> Iterator[Check]:
    """Neighbours in the published order, one claim each."""
    found = {policy: results[f"real/{policy}"] for policy in REAL_ORDER if f"real/{policy}" in results}
    for less, more in pairwise(found):
        ratio = found[less]["difference"][1] / found[more]["difference"][1]
        published = PUBLISHED[f"real/{less}"].difference[1] / PUBLISHED[f"real/{more}"].difference[1]
        yield _between(f"8 real: service difference of {less} / {more} (paper: {published:.2f})", ratio, 0, 1)
    throughput = [found[policy]["throughput"] for policy in ("rpm5", "rpm10", "rpm15", "rpm20", "rpm30", "vtc")]
    said = " < ".join(f"{value:.0f}" for value in throughput)
    yield Check("8 real: throughput of rpm5, 10, 15, 20, 30, vtc", said, "growing", throughput == sorted(throughput))


def _between(name: str, value: float, low: float, high: float) -> Check:
    wanted = f"at least {_plain(low)}" if high == float("inf") else f"{_plain(low)} to {_plain(high)}"
    return Check(name, _plain(value), wanted, low <= value <= high)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3f}"
