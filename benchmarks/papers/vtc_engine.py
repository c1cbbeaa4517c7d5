"""The engine of the VTC paper, as far as it shows in the figures: it looks for admissions every ten decode steps.

Its other particular, that a request is admitted only if all it may come to hold fits, is an option of ours
(`memory.gate`).  The interval is not: a slot that became free stays empty for five steps on average, which costs
1-2 % of the throughput here, and with it moves the share of a client that asks for a fixed amount.  Only this
benchmark has it, so that figures are compared under equal engines; where nothing runs, admissions are looked for at
once.
"""

from __future__ import annotations

from dataclasses import fields

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.presets import PRESETS, Preset

ADMISSION_STEPS = 10


class IntervalPlanner:
    """A planner whose admissions are let through every `ADMISSION_STEPS` steps."""

    always = True

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._steps = 0  # since admissions were looked for

    def plan(self, view: StepView) -> StepPlan:
        plan = self._planner.plan(view)
        self._steps += 1
        if view.running and self._steps < ADMISSION_STEPS:
            plan.candidates = ()
        else:
            self._steps = 0
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """A step under an old plan is a step, too."""
        due = self._steps + 1 >= ADMISSION_STEPS
        if due or not self._planner.reusable(work, now_s, pending_s, last_output_s, steps):
            return False
        self._steps += 1
        return True


class IntervalPreset(Preset):
    """A preset whose policies admit at intervals."""

    def make_planner(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> Planner:
        return IntervalPlanner(Preset.make_planner(self, config, counters, predictor))


_PUBLISHED = dict(PRESETS)


def use_engine(preset: str, variant: str) -> None:
    """Schedulers that this process makes with `preset` from now on run on the paper's engine, in that variant."""
    given = _PUBLISHED[preset]
    kind = Preset if variant.startswith(("every step", "no gate")) else IntervalPreset
    PRESETS[preset] = kind(**{field.name: getattr(given, field.name) for field in fields(Preset)})
