"""A toy of vLLM's scheduler loop around the real policy: slots, blocks, chunks, and a clock that a machine moves.

It does what matters to the policy in vLLM's own order: running requests in the plan's order, the tail preempted when
blocks are short, then (unless somebody was) requests that come back from parking, then the plan's candidates. Every
plan is checked, every step is held against its plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.unit.policy.world import BLOCK_TOKENS, Pool, blocks_of, planner, step_view, waiting, work_of
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.plan import StepPlan, StepResult, check_obedience, check_plan
from vllm_hybrid.policy.request import ClientKey, RequestView


@dataclass(frozen=True)
class Machine:
    """What the engine runs on; the coefficients are the seconds of `StepWork.features`."""

    blocks: int = 100
    watermark_blocks: int = 0
    slots: int = 16
    step_tokens: int = 256
    coefficients: Sequence[float] = (0.005, 2e-4, 5e-5, 1e-7, 1e-9)

    @property
    def kv_tokens(self) -> int:
        return self.blocks * BLOCK_TOKENS


@dataclass
class Step:
    """One step under way."""

    plan: StepPlan
    budget: int
    chunks: dict[RequestView, int] = field(default_factory=dict)
    admitted: list[RequestView] = field(default_factory=list)
    victims: list[RequestView] = field(default_factory=list)  # of blocks that ran out inside the step
    offered: dict[str, RequestView] = field(default_factory=dict)


class ToyEngine:
    """Runs requests to their end. `outputs`: how many tokens a request generates, known to the engine alone."""

    def __init__(self, machine: Machine, counters: VirtualCounters, slo: dict | None = None, interval_s: float = 5.0):
        self.machine = machine
        self.counters = counters
        self.predictor = StepTimePredictor()
        self.planner = planner(slo, counters, self.predictor, interval_s)
        self.queue = waiting([], counters)
        self.pool = Pool(machine.blocks, machine.blocks, machine.watermark_blocks)
        self.running: list[RequestView] = []
        self.parked: list[RequestView] = []
        self.outputs: dict[RequestView, int] = {}
        self.service: dict[ClientKey, float] = {}
        self.finished: list[RequestView] = []
        self.preemptions: list[tuple[float, RequestView, bool]] = []  # when, who, inside a step
        self.now_s = self.last_output_s = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.running or self.parked or len(self.queue))

    def add(self, view: RequestView, output_tokens: int) -> None:
        """A request arrives."""
        assert blocks_of(view.prompt_tokens + output_tokens) <= self.machine.blocks, "could never run"
        view.arrival_s = self.now_s
        self.outputs[view] = view.max_output_tokens = output_tokens
        self.queue.lift(view.key)
        self.queue.add(view)

    def abort(self, view: RequestView) -> None:
        """The caller leaves."""
        if not self.queue.discard(view):
            self.pool.free += blocks_of(view.computed_tokens)
            (self.running if view in self.running else self.parked).remove(view)

    def lose_memory(self, view: RequestView) -> None:
        """A running request is preempted, whatever the policy says."""
        self.running.remove(view)
        self._forget(view)

    def step(self) -> int:
        """Plan and run one step; the tokens it computed."""
        view = step_view(
            list(self.running),
            self.queue,
            self.pool,
            list(self.parked),
            self.machine.slots,
            now_s=self.now_s,
            last_output_s=self.last_output_s,
            max_tokens=self.machine.step_tokens,
            growth_blocks_free=self.pool.free,
        )
        plan = self.planner.plan(view)
        check_plan(view, plan)
        step = Step(plan, plan.token_budget)
        self._apply(plan)
        self._run(step)
        if not step.victims:
            self._unpark(step)
            self._admit(step)
        close = getattr(plan.candidates, "close", lambda: None)
        close()
        self._obeyed(step)
        self._account(step)
        return sum(step.chunks.values())

    # -- before the step -----------------------------------------------------------------------------------------------
    def _apply(self, plan: StepPlan) -> None:
        for view in plan.preempt:
            self.running.remove(view)
            self._forget(view)
        for view in plan.drop:
            self.parked.remove(view)
            self._forget(view)
        self.parked += plan.park
        self.running = list(plan.order)

    def _forget(self, view: RequestView, in_step: bool = False) -> None:
        """The request loses its memory and waits again."""
        self.pool.free += blocks_of(view.computed_tokens)
        view.missing_tokens += view.computed_tokens
        view.computed_tokens = 0
        view.started, view.disturbed_s = True, self.now_s
        self.pool.taken.discard(view)
        self.preemptions.append((self.now_s, view, in_step))
        self.queue.prepend(view)

    # -- the step, in vLLM's order -------------------------------------------------------------------------------------
    def _run(self, step: Step) -> None:
        paused = set(step.plan.paused)
        for view in list(self.running):
            if step.budget < 1:
                return
            if view in paused or view in step.victims:
                continue
            tokens = min(view.missing_tokens, step.budget, step.plan.caps.get(view.request_id, view.missing_tokens))
            while self._blocks_for(view, tokens) > self.pool.free:
                victim = self.running.pop()
                self._forget(victim, in_step=True)
                step.victims.append(victim)
                assert victim not in step.chunks, "the tail was served before somebody in front of it"
                if victim is view:
                    return
            self._compute(step, view, tokens)

    @staticmethod
    def _blocks_for(view: RequestView, tokens: int) -> int:
        return blocks_of(view.computed_tokens + tokens) - blocks_of(view.computed_tokens)

    def _compute(self, step: Step, view: RequestView, tokens: int) -> None:
        self.pool.free -= self._blocks_for(view, tokens)
        step.chunks[view] = tokens
        step.budget -= tokens

    def _unpark(self, step: Step) -> None:
        for view in step.plan.unpark:
            if not self._enters(step, view):
                return
            self.parked.remove(view)

    def _admit(self, step: Step) -> None:
        for view in step.plan.candidates:
            if view in step.plan.preempt or view in step.plan.drop:
                continue
            step.offered[view.request_id] = view
            if not self._enters(step, view):
                return
            self.queue.discard(view)
            if view.started:
                view.started, view.disturbed_s = False, self.now_s

    def _enters(self, step: Step, view: RequestView) -> bool:
        self.pool.somebody_runs = bool(self.running)
        if step.budget < 1 or len(self.running) >= self.machine.slots or not self.pool.admissible_tokens(view, 0):
            return False
        tokens = min(view.missing_tokens, step.budget, step.plan.caps.get(view.request_id, view.missing_tokens))
        self._compute(step, view, tokens)
        self.running.append(view)
        self.pool.taken.add(view)
        step.admitted.append(view)
        return True

    # -- after the step ------------------------------------------------------------------------------------------------
    def _obeyed(self, step: Step) -> None:
        scheduled = {view.request_id: tokens for view, tokens in step.chunks.items()}
        admitted = [view.request_id for view in step.admitted]
        check_obedience(step.plan, StepResult(sum(scheduled.values()), scheduled, {}, admitted, step.offered))
        assert 0 <= self.pool.free <= self.pool.total

    def _account(self, step: Step) -> None:
        decodes = [view for view in step.chunks if view.missing_tokens == 1]
        work = work_of(decodes, [(view, n) for view, n in step.chunks.items() if view.missing_tokens > 1])
        seconds = math.fsum(c * x for c, x in zip(self.machine.coefficients, work.features(), strict=True))
        self.now_s += seconds if step.chunks else 0.001
        if step.chunks:
            self.predictor.observe(work, seconds)
            self.last_output_s = self.now_s
        for view, tokens in step.chunks.items():
            self._advance(view, tokens)

    def _advance(self, view: RequestView, tokens: int) -> None:
        end = view.computed_tokens + tokens
        fresh = max(0, min(end, view.prompt_tokens) - max(view.computed_tokens, view.billed_prompt_tokens))
        view.billed_prompt_tokens += fresh
        sampled = tokens == view.missing_tokens
        self.counters.charge(view.key, fresh, int(sampled))
        self.service[view.key] = self.service.get(view.key, 0.0) + fresh + 2 * sampled
        view.computed_tokens = end
        view.missing_tokens += sampled - tokens
        view.output_tokens += sampled
        view.prefilling = not sampled
        if view.output_tokens >= self.outputs[view]:
            self.running.remove(view)
            self.pool.free += blocks_of(view.computed_tokens)
            self.finished.append(view)
