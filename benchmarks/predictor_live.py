"""How well does the predictor learn a live engine, and how soon?

One engine in this process, bound to one core; the other core is kept busy by `load_core.py`. Requests come so that 1 to
32 of them decode while prompts of 64 to 1,024 tokens join, each in one chunk. Every step is predicted before it is
learned from; errors are those of the predictor in the scheduler itself, as it would be budgeted by. The mean relative
error of the steps after the 500th is the claim; how it falls before that is printed too. Beside it stands what is left
when the same features are fitted to the judged steps themselves ("in hindsight"): where a step takes once so long and
once twice as long, nobody can predict it. Then all of it again without the load on the other core. The engine's clock
is the wall's, or with `--clock cpu` the CPU time of this process, for a machine with other work.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import live_engine
from benchmarks.demo import machine, model
from benchmarks.papers.common import RESULTS, Check, finish, table
from vllm_hybrid.policy.latency_features import NEIGHBOURS, StepWork, feature_rows, figures_of
from vllm_hybrid.policy.latency_fit import fit_relative
from vllm_hybrid.sim.records import Contender, EngineSettings, SimRequest

SETTINGS = EngineSettings(max_seqs=32, step_tokens=1_088, pool_tokens=65_536, block_size=32, max_model_len=1_536)
CONTENDER = Contender("hybrid", hybrid={"slo": {"online": {"ttft_s": 1_000.0}}, "strict": True})
MOST_DECODES, LEAST_PROMPT, MOST_PROMPT = 32, 64, 1_024
TURN_STEPS = 40  # after so many another number of decodes is aimed at
TRAINING_STEPS, JUDGED_STEPS = 500, 300
WARM_UP_STEPS = 30  # the engine's own first steps, before the predictor sees any
LIMIT, AIM = 0.10, 0.05
BESIDE, ALONE = "beside the load", "alone"
SEED = 0
OUTPUT_TOKENS = (16, 96)


@dataclass(frozen=True)
class Step:
    """A step as it was predicted and as it was. predicted_s: nan while the predictor was not ready."""

    work: StepWork
    predicted_s: float
    seconds: float

    @property
    def error(self) -> float:
        """Relative to the real time."""
        return abs(self.predicted_s / self.seconds - 1.0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictor_live", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", choices=sorted(model.MAKERS))
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: on a machine with other work")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, and no claim")
    parser.add_argument("--check", action="store_true", help="exit with 1 when the error is above its limit")
    parser.add_argument("--out", type=Path, help="file of the results (benchmarks/results/; none with --quick)")
    given = parser.parse_args()
    if given.out is None and not given.quick:
        given.out = RESULTS / "predictor_live.json"
    os.environ.update(live_engine.IN_PROCESS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("one core for the engine and one to load: this process may use only one")
    count = (TRAINING_STEPS + JUDGED_STEPS) // (10 if given.quick else 1)
    setting = {"machine": machine.describe(), "model": given.model, "clock": given.clock, "seed": SEED}
    os.sched_setaffinity(0, {cores[0]})
    found, checks = {}, []
    for beside in (BESIDE, ALONE):
        with _loaded(cores[1]) if beside == BESIDE else contextlib.nullcontext():
            steps = measure(given, count)
        judged = steps[count * TRAINING_STEPS // (TRAINING_STEPS + JUDGED_STEPS) :]
        error, hindsight = statistics.fmean(step.error for step in judged), in_hindsight(judged)
        print(f"\n{beside}\n\n{table(rows(steps))}")
        print(
            f"the last {len(judged)} steps: {error:.1%}, in hindsight {hindsight:.1%} (where we are going: {AIM:.0%})"
        )
        found[beside] = {"error": error, "median_error": _median(judged), "hindsight_error": hindsight}
        found[beside] |= {"table": rows(steps), "decodes": _span(s.work.decodes for s in judged)}
        found[beside] |= {"chunk_tokens": _span(s.work.prefill_tokens for s in judged)}
        if not given.quick:
            wanted = f"at most {LIMIT:.0%}"
            checks.append(Check(f"{beside}: mean error after 500 steps", f"{error:.1%}", wanted, error <= LIMIT))
    return finish(given, {"setting": setting, "limit": LIMIT, "found": found}, {}, checks)


@contextmanager
def _loaded(core: int) -> Iterator[None]:
    """The fixed load on the other core while the block runs."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load_core", str(core)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def measure(given: argparse.Namespace, count: int) -> list[Step]:
    """`count` steps of a fresh predictor, in the live engine."""
    folder, clock = str(model.prepare(given.model)), live_engine.Clock(given.clock)
    with live_engine.engine_of(folder, machine.fast_dtype(), CONTENDER, SETTINGS) as engine:
        scheduler = engine.engine_core.engine_core.scheduler
        scheduler.clock = clock
        loop = _Load(engine)
        for _ in range(WARM_UP_STEPS):
            loop.step()
        predictor = type(scheduler.predictor)()
        scheduler.timer.predictor = predictor
        steps: list[Step] = []
        learn = predictor.observe

        def observe(work: StepWork, seconds: float, alone: bool = True) -> None:
            steps.append(Step(work, predictor.seconds(work) if predictor.ready else math.nan, seconds))
            learn(work, seconds, alone)

        predictor.observe = observe
        while len(steps) < count:
            loop.step()
    return steps


class _Load:
    """Keeps as many requests in the engine as it aims at, and changes that aim."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._rng = random.Random(SEED)
        self._numbers = itertools.count()
        self._aim = 1

    def step(self) -> None:
        """One turn of the engine; one request joins it if there are fewer than wanted."""
        number, rng = next(self._numbers), self._rng
        if number % TURN_STEPS == 0:
            self._aim = round(2 ** rng.uniform(0, math.log2(MOST_DECODES)))
        if self._engine.get_num_unfinished_requests() < self._aim:
            prompt = round(2 ** rng.uniform(math.log2(LEAST_PROMPT), math.log2(MOST_PROMPT)))
            live_engine.add(self._engine, SimRequest(f"r{number}", 0.0, prompt, rng.randint(*OUTPUT_TOKENS)))
        self._engine.step()


def in_hindsight(steps: Sequence[Step]) -> float:
    """The mean error of the coefficients that are best for these steps."""
    features = feature_rows([figures_of(step.work) for step in steps])
    seconds = np.array([step.seconds for step in steps])
    best = np.array(fit_relative(features, seconds, NEIGHBOURS))
    return float(np.abs(features @ best / seconds - 1.0).mean())


def rows(steps: Sequence[Step]) -> list[dict[str, str]]:
    """The error by the number of steps learned from, all and those with a chunk."""
    found, part_steps = [], max(1, len(steps) // 8)
    for first in range(0, len(steps), part_steps):
        part = [step for step in steps[first : first + part_steps] if not math.isnan(step.predicted_s)]
        chunks = [step for step in part if step.work.prefill_tokens]
        found.append(
            {
                "steps": f"{first + 1}-{first + part_steps}",
                "with a chunk": str(len(chunks)),
                "mean error": _percent([step.error for step in part]),
                "median error": _percent([step.error for step in part], statistics.median),
                "of those with a chunk": _percent([step.error for step in chunks]),
            }
        )
    return found


def _percent(errors: Sequence[float], of: Any = statistics.fmean) -> str:
    return f"{of(errors):.1%}" if errors else "-"


def _median(steps: Sequence[Step]) -> float:
    return statistics.median(step.error for step in steps)


def _span(values: Any) -> list[int]:
    found = [value for value in values if value]
    return [min(found), max(found)]


if __name__ == "__main__":
    sys.exit(main())
