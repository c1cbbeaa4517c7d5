"""One default configuration against every paper's policy, on each paper's own ground and on a mixed trace.

    python -m benchmarks.headline [--quick] [--only PART ...] [--check] [--workers N] [--out FILE]

`hybrid` is told the workload's targets and nothing else.  `fcfs` and `priority` are vLLM's own classes, each with the
best of four fixed token budgets.  Judged by the share of online requests whose first token and whose every gap came
within the targets ("worst"); what a policy did to get there stands beside it.  Parts: main, ablation, robustness.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from benchmarks.papers.headline_runs import ABLATIONS, BUDGETS, CASES, INGREDIENTS, MIXED, Run, measured

STOCK = ("fcfs", "priority")
PRESETS = ("sarathi@512", "vtc", "hygen@512", "apt", "qoserve")
HYBRID, CLAIRVOYANT = "hybrid", "hybrid, lengths known"
QUICK = ("chat 1.3x, 14k pool",)
NEAR_FIRST = 0.98  # of the first one's share, on every workload
BETTER_ON_MIXED = 1.2  # than the best other single preset
MOST_RECOMPUTED, MOST_GAP = 0.05, 5.0  # chat overload: of all tokens; times the TBT target
OTHER_SEEDS, OTHER_RATES, OTHER_DEVICE = (2, 3), (0.7, 1.3), "h100_llama2_7b_fp16"
RIVALS = ("fcfs@512", "apt", "qoserve")  # of the robustness: the best of the others somewhere
CHAT_OVERLOAD = ("chat 1.3x, 14k pool", "chat 1.3x, 42k pool")
ON_OTHER_DEVICE = (*CHAT_OVERLOAD, MIXED)  # whose loads are made for a device of its size


def main() -> int:
    given = arguments("headline", __doc__.splitlines()[0], ("main", "ablation", "robustness"))
    parts = given.only or (["main"] if given.quick else ["main", "ablation", "robustness"])
    budgets = (512, 2048) if given.quick else BUDGETS
    runs = {part: list(_RUNS[part](QUICK if given.quick else tuple(CASES), budgets)) for part in parts}
    watch = Stopwatch()
    everything = list(dict.fromkeys(run for part in runs.values() for run in part))
    outcomes = run_all(measured, everything, given.workers)
    found = {run: figures for run, (figures, _) in zip(everything, outcomes, strict=True)}
    checks: list[Check] = []
    for part in parts:
        print(f"\n{part}\n")
        print(table([_row(run, found[run]) for run in _shown(runs[part], found)]))
    if "main" in parts:
        cases = list(dict.fromkeys(run.case for run in runs["main"]))
        checks = [check for case in cases for check in _checks(case, found)]
        if given.out is not None:
            _plot(cases, found, given.out.with_suffix(".svg"))
    if "robustness" in parts:
        checks += list(_kept_order(runs["robustness"], found))
    print(f"\n{len(everything)} runs: {watch.seconds:.0f} s")
    told = {"runs": {run.name: figures for run, figures in found.items()}}
    timing = {"wall_s": watch.seconds, "cpu_s": sum(spent["cpu_s"] for _, spent in outcomes)}
    return finish(given, told, timing, checks)


def _main(cases: tuple[str, ...], budgets: tuple[int, ...]) -> Iterator[Run]:
    for case in cases:
        yield from (Run(case, f"{name}@{budget}") for name in STOCK for budget in budgets)
        yield from (Run(case, name) for name in (*PRESETS, HYBRID))
        yield Run(case, CLAIRVOYANT, known_lengths=True)


def _ablation(cases: tuple[str, ...], budgets: tuple[int, ...]) -> Iterator[Run]:
    for case in cases:
        yield Run(case, HYBRID)
        yield from (Run(case, name, changes=changes) for name, changes in ABLATIONS.items())
        yield from (Run(case, name) for name in INGREDIENTS)


def _robustness(cases: tuple[str, ...], budgets: tuple[int, ...]) -> Iterator[Run]:
    for case in cases:
        for policy in (*RIVALS, HYBRID):
            yield from (Run(case, policy, seed=seed) for seed in OTHER_SEEDS)
            yield from (Run(case, policy, factor=factor) for factor in OTHER_RATES)
            if case in ON_OTHER_DEVICE:
                yield Run(case, policy, device=OTHER_DEVICE)


_RUNS = {"main": _main, "ablation": _ablation, "robustness": _robustness}


def _shown(runs: list[Run], found: Mapping[Run, Any]) -> Iterator[Run]:
    """Of vLLM's own classes the run with the best budget, and everybody else."""
    for run in runs:
        name, _, budget = run.policy.partition("@")
        if name not in STOCK or not budget:
            yield run
            continue
        rivals = [r for r in runs if r.policy.startswith(f"{name}@") and _setting(r) == _setting(run)]
        if run is max(rivals, key=lambda r: found[r]["worst"] or 0.0):
            yield run


def _setting(run: Run) -> tuple[object, ...]:
    return run.case, run.seed, run.factor, run.device


def _row(run: Run, figures: Mapping[str, Any]) -> dict[str, str]:
    changed = [f"seed {run.seed}"] if run.seed != 1 else []
    changed += [f"{run.factor:g}x"] if run.factor != 1 else []
    changed += [run.device] if run.device else []
    return {
        "workload": ", ".join([run.case, *changed]),
        "policy": run.policy,
        "worst": f"{figures['worst']:.1%}",
        "p99": f"{figures['p99']:.1%}",
        "by deadline": f"{figures['goodput']:.1%}",
        "longest gap": f"{figures['worst_gap_s']:.2f} s",
        "p99 wait": f"{figures['p99_wait_s']:.1f} s",
        "recomputed": f"{figures['recomputed']:.1%}",
        "service gap / 2U": "-"
        if figures["service_gap_of_bound"] is None
        else f"{figures['service_gap_of_bound']:.2f}",
        "tokens/s": f"{figures['tokens_per_s']:,.0f}",
        "offline": f"{figures['offline_tokens_per_s']:,.0f}",
    }


def _checks(case: str, found: Mapping[Run, Any]) -> Iterator[Check]:
    shares = {
        run.policy: figures["worst"] or 0.0
        for run, figures in found.items()
        if _setting(run) == _setting(Run(case, HYBRID))
    }
    ours = shares[HYBRID]
    others = {name: share for name, share in shares.items() if not name.startswith(HYBRID)}
    first = max(others, key=lambda name: others[name])
    said = f"{ours:.1%} against {others[first]:.1%} ({first})"
    yield Check(
        f"{case}: hybrid's share by worst gap",
        said,
        f"{NEAR_FIRST:.0%} of the first",
        ours >= NEAR_FIRST * others[first],
    )
    if case == MIXED:
        presets = {name: share for name, share in others.items() if name.partition("@")[0] not in STOCK}
        best = max(presets, key=lambda name: presets[name])
        said = f"{ours:.1%} against {presets[best]:.1%} ({best})"
        holds = ours >= BETTER_ON_MIXED * presets[best]
        yield Check(f"{case}: against the best other preset", said, f"{BETTER_ON_MIXED:g}x or more", holds)
    if case in CHAT_OVERLOAD:
        figures, slo = found[Run(case, HYBRID)], CASES[case].slo
        lost = figures["recomputed"]
        yield Check(f"{case}: recomputed", f"{lost:.1%}", f"{MOST_RECOMPUTED:.0%} at most", lost <= MOST_RECOMPUTED)
        limit_s = MOST_GAP * (slo.tbt_s or 0.0)
        gap_s = figures["worst_gap_s"]
        yield Check(f"{case}: longest gap", f"{gap_s:.2f} s", f"{limit_s:g} s and a step", gap_s <= limit_s + 0.1)


def _kept_order(runs: list[Run], found: Mapping[Run, Any]) -> Iterator[Check]:
    """Whether hybrid is first, or nearly, in every variant too."""
    for ours in (run for run in runs if run.policy == HYBRID):
        rivals = [run for run in runs if run.policy != HYBRID and _setting(run) == _setting(ours)]
        first = max(rivals, key=lambda run: found[run]["worst"] or 0.0)
        share, best = (found[run]["worst"] or 0.0 for run in (ours, first))
        said = f"{share:.1%} against {best:.1%} ({first.policy})"
        name = _row(ours, found[ours])["workload"]
        yield Check(f"order: {name}", said, f"{NEAR_FIRST:.0%} of the first", share >= NEAR_FIRST * best)


def _plot(cases: list[str], found: Mapping[Run, Any], path: Path) -> None:
    """Bars of the share by worst gap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [*STOCK, *PRESETS, HYBRID]
    figure, axes = plt.subplots(figsize=(12, 4))
    for i, name in enumerate(names):
        heights = []
        for case in cases:
            of_case = [
                f["worst"] or 0.0
                for r, f in found.items()
                if r.policy.startswith(name)
                and _setting(r) == _setting(Run(case, HYBRID))
                and not r.known_lengths
                and not r.changes
                and r.policy not in INGREDIENTS
            ]
            heights.append(100 * max(of_case, default=0.0))
        axes.bar([k + i * 0.1 for k in range(len(cases))], heights, 0.1, label=name)
    axes.set_xticks([k + 0.35 for k in range(len(cases))], cases, rotation=20, ha="right")
    axes.set_ylabel("% of online requests within both targets, by worst gap")
    axes.legend(ncols=4, fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
