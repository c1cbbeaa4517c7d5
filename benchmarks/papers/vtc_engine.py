"""The particulars of the VTC paper's engine that are no options of ours; only this benchmark has them.

It looks for admissions every ten decode steps.  (That a request is admitted only if all it may come to hold fits is
`memory.gate`.)  A slot that became free stays empty for five steps on average, which costs 1-2 % of the throughput
here, and with it moves the share of a client that asks for a fixed amount; where nothing runs, admissions are looked
for at once.  And two variants of VTC that charge an output before it is there: the length that is foreseen counts
when clients are compared, from the admission on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import fields

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.presets import PRESETS, Preset
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView

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


class Foreseeing:
    """VTC's order with outputs charged ahead: their true length (oracle), or the mean of what the client had so far.

    The mean is smoothed as in the paper's artifact: m = (4 m + x) / 5 after each output of length x.
    """

    def __init__(self, counters: VirtualCounters, oracle: bool) -> None:
        self._counters = counters
        self._oracle = oracle
        self._means: dict[ClientKey, float] = {}
        self._seen: dict[RequestView, float] = {}  # running requests -> the length foreseen at admission

    def __call__(self, view: StepView) -> Generator[RequestView, None, None]:
        self._observe(view)
        yield from view.waiting.resuming(Lane.ONLINE)
        promised = Groups.of(view.running).promised(self._counters)
        for request, foreseen in self._seen.items():
            ahead = max(0, round(foreseen) - request.output_tokens)
            promised[request.key] = promised.get(request.key, 0.0) + self._counters.cost(request.key, 0, ahead)
        with contextlib.closing(view.waiting.walk(Lane.ONLINE, promised, ())) as walk:
            yield from walk

    def _observe(self, view: StepView) -> None:
        """Whoever is gone has generated all it may: nothing is preempted under the gate, and nothing ends early."""
        running = set(view.running)
        for request in [request for request in self._seen if request not in running]:
            del self._seen[request]
            mean = self._means.setdefault(request.key, request.max_output_tokens)
            self._means[request.key] = (4 * mean + request.max_output_tokens) / 5
        for request in view.running:
            known = request.max_output_tokens if self._oracle else self._means.get(request.key, 0.0)
            self._seen.setdefault(request, known)


def _foreseeing(oracle: bool) -> Callable[[HybridConfig, VirtualCounters, StepTimePredictor], Planner]:
    return lambda config, counters, predictor: BatchPlanner(Foreseeing(counters, oracle))


_PUBLISHED = dict(PRESETS)
_VARIANTS = {"oracle": _foreseeing(True), "predicted": _foreseeing(False)}


def use_engine(preset: str, variant: str) -> None:
    """Schedulers that this process makes with `preset` from now on run on the paper's engine, in that variant."""
    given = _PUBLISHED[preset]
    kind = Preset if variant in ("every step", "no gate") else IntervalPreset
    parts = {field.name: getattr(given, field.name) for field in fields(Preset)}
    PRESETS[preset] = kind(**{**parts, "planner": _VARIANTS.get(variant, given.planner)})
