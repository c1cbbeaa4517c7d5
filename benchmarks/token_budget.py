"""What a token budget per step is worth: stock vLLM at five fixed ones, and hybrid, which has seconds for a budget.

    python -m benchmarks.token_budget [--quick] [--check] [--workers N] [--out FILE]

Capacity as Sarathi-Serve defines it (`papers/sarathi_capacity.py`): the highest Poisson rate of chat requests at which
the 99th percentile of the times between two tokens is at most 100 ms and the median scheduling delay at most 2 s.
Mistral-7B and Llama-3-8B, each on a simulated A100-80.  Hybrid is told the 100 ms and, as single gaps are judged, that
they count (`gap: strict`), in an engine of 8,192 tokens per step.  Beside it stands what it does where tokens that came
early are credit (`gap: deadline`, the default): then single gaps are longer than the limit on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.papers.common import Check, Stopwatch, arguments, finish, run_all, table
from benchmarks.papers.sarathi_capacity import SEED, STEP, Cell, capacity
from vllm_hybrid.sim.run import Contender

LIMIT_S = 0.1
BUDGETS = (256, 512, 1024, 2048, 8192)
HYBRID, CREDIT = "hybrid", "hybrid, credit"
DEVICES = {"Mistral-7B": "a100_80_mistral_7b", "Llama-3-8B": "a100_80_llama3_8b_qoserve"}
REQUESTS, QUICK_REQUESTS, QUICK_STEP = 512, 64, 1.15
LEAST_OF_BEST, LEAST_OF_SECOND = 1.0, 1.1  # hybrid's capacity / the best and the second best fixed budget's


@dataclass(frozen=True)
class Search:
    """The capacity of a model under one budget: a fixed one, or one of hybrid's own."""

    cell: Cell
    budget: int | str
    step: float
    start_rate: float = 2.5

    @property
    def name(self) -> str:
        return f"{self.cell.model}/{self.budget}"

    @property
    def contender(self) -> Contender:
        if isinstance(self.budget, str):
            gap = "strict" if self.budget == HYBRID else "deadline"
            settings = {"slo": {"online": {"tbt_s": LIMIT_S, "gap": gap}}}
            return Contender(self.budget, hybrid=settings, engine={"step_tokens": BUDGETS[-1]})
        return Contender(str(self.budget), stock="fcfs", engine={"step_tokens": self.budget})


def main() -> int:
    given = arguments("token_budget", __doc__.splitlines()[0])
    requests, step = (QUICK_REQUESTS, QUICK_STEP) if given.quick else (REQUESTS, STEP)
    models = dict(list(DEVICES.items())[: 1 if given.quick else None])
    cells = [Cell(device, model, "chat", LIMIT_S, 0, requests, (0, 0, 0)) for model, device in models.items()]
    budgets = (512, 2048, HYBRID) if given.quick else (*BUDGETS, HYBRID, CREDIT)
    searches = [Search(cell, budget, step) for cell in cells for budget in budgets]
    watch = Stopwatch()
    outcomes = run_all(capacity, searches, given.workers)
    results = {search.name: found for search, (found, _) in zip(searches, outcomes, strict=True)}
    timing = {search.name: spent for search, (_, spent) in zip(searches, outcomes, strict=True)}
    print(f"Capacity at a P99 TBT of {LIMIT_S:g} s, {requests} requests, seed {SEED}: {watch.seconds:.0f} s\n")
    print(table([_row(search, results) for search in searches]))
    told = {"limit_s": LIMIT_S, "requests": requests, "seed": SEED, "devices": models, "searches": results}
    checks = [check for model in models for check in _checks(model, results)]
    return finish(given, told, {"cpu_s": sum(spent["cpu_s"] for spent in timing.values()), "searches": timing}, checks)


def _row(search: Search, results: Mapping[str, Any]) -> dict[str, str]:
    found = results[search.name]
    return {
        "model": search.cell.model,
        "tokens/step": str(search.budget),
        "req/s": f"{found['capacity']:.2f}",
        "P99 TBT there": f"{1000 * found['there']['p99_tbt_s']:.0f} ms",
        "median delay": f"{found['there']['median_delay_s']:.2f} s",
        "missed above": found["missed_above"],
    }


def _checks(model: str, results: Mapping[str, Any]) -> list[Check]:
    ours = results[f"{model}/{HYBRID}"]["capacity"]
    fixed = {name: results[name]["capacity"] for name in results if name.startswith(model) and HYBRID not in name}
    best, second = sorted(fixed, key=lambda name: -fixed[name])[:2]
    return [
        Check(
            f"{model}: capacity of hybrid / fixed budget of {against.partition('/')[2]} ({which})",
            f"{ours / fixed[against]:.2f}",
            f"at least {least:g}",
            ours >= least * fixed[against],
        )
        for against, which, least in ((best, "best", LEAST_OF_BEST), (second, "second best", LEAST_OF_SECOND))
    ]


if __name__ == "__main__":
    sys.exit(main())
