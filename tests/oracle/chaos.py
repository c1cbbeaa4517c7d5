"""Random legal plans: whatever a plan does, no output may change and nothing may leak.

`ChaosPlanner` stands where the hybrid planner stands and decides by dice: any order, caps, pauses, preemptions,
parking, any candidates, any budget. The chaos schedulers throw dice even over whether a step is planned at all, is
vLLM's own, or runs on as it stands. Everything else is the product's own code, with `strict` on, so that a step which
does not follow its plan raises.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.oracle.obedience import Witness
from vllm_hybrid.engine.scheduler import HybridMixin, HybridScheduler, HybridSyncScheduler
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import RequestView
from vllm_hybrid.sim.modelfree import Classes, EngineLoop

CAPS = (1, 2, 3, 7, 16, 31, 64)
BUDGETS = (1, 5, 17, 64, 256)
CANDIDATES = (0, 1, 4, 100)


@dataclass(frozen=True)
class Rates:
    """How often a plan does what."""

    cap: float = 0.5  # of the requests that prefill or wait
    pause_all: float = 0.06
    preempt: float = 0.1  # of the steps: one or two victims
    park: float = 0.1  # of the running requests, each
    drop: float = 0.05  # of the parked requests, each
    unpark: float = 0.5  # of the parked requests, each
    stock_step: float = 0.1  # of the steps, and as many run on without a plan


USUAL = Rates()


class ChaosPlanner:
    """Plans by dice."""

    def __init__(self, rng: random.Random, rates: Rates = USUAL) -> None:
        self.rng = rng
        self.rates = rates
        self.plans = 0
        self.offered: list[str] = []  # candidates of the last plan

    def plan(self, view: StepView) -> StepPlan:
        rng, rates = self.rng, self.rates
        self.plans += 1
        order = list(view.running)
        rng.shuffle(order)
        preempt = self._victims(view, order)
        park = [v for v in order if v not in preempt and v.computed_tokens and rng.random() < rates.park]
        order = [v for v in order if v not in preempt and v not in park]
        drop = [v for v in view.parked if rng.random() < rates.drop]
        waiting = list(view.waiting)
        rng.shuffle(waiting)
        candidates = waiting[: rng.choice(CANDIDATES)]
        self.offered = [v.request_id for v in candidates]
        return StepPlan(
            token_budget=min(view.max_tokens, rng.choice((*BUDGETS, view.max_tokens))),
            order=order,
            paused=self._paused(order),
            caps=self._caps([v for v in order if v.prefilling] + waiting),
            preempt=preempt,
            park=park,
            drop=drop,
            unpark=[v for v in view.parked if v not in drop and rng.random() < rates.unpark],
            candidates=iter(candidates),
        )

    def _victims(self, view: StepView, order: list[RequestView]) -> list[RequestView]:
        if self.rng.random() >= self.rates.preempt:
            return []
        possible = [v for v in order if view.reclaimable_blocks(v) > 0]
        return self.rng.sample(possible, min(len(possible), self.rng.choice((1, 2))))

    def _paused(self, order: list[RequestView]) -> list[RequestView]:
        if self.rng.random() < self.rates.pause_all:
            return list(order)
        return self.rng.sample(order, min(len(order), self.rng.choice((0, 0, 1, 3))))

    def _caps(self, views: list[RequestView]) -> dict[str, int]:
        return {v.request_id: self.rng.choice(CAPS) for v in views if self.rng.random() < self.rates.cap}


class ChaosMixin(HybridMixin):
    """Throws dice over how a step is made."""

    dice = random.Random(0)
    rates = USUAL

    def _stock_step(self) -> bool:
        return self.dice.random() < self.rates.stock_step

    def _can_reuse(self) -> bool:
        # Legal at any time: everybody who runs goes on, nobody comes in.
        return self.dice.random() < self.rates.stock_step


class ChaosSyncScheduler(ChaosMixin, HybridSyncScheduler):
    pass


class ChaosScheduler(ChaosMixin, HybridScheduler):
    pass


CHAOS = Classes(ChaosSyncScheduler, ChaosScheduler)


def unleash(loop: EngineLoop, seed: int, rates: Rates = USUAL) -> Witness:
    """Put dice in the place of the planner of a chaos scheduler, and a witness in front of them."""
    scheduler = loop.scheduler
    scheduler.dice = random.Random(seed)
    scheduler.rates = rates
    scheduler.planner = ChaosPlanner(scheduler.dice, rates)
    return Witness(loop)
