"""HyGen (arXiv 2501.14808): online requests first, offline ones within a constant budget of predicted seconds a step.

Phase 1 serves the online queue as Sarathi does, whatever it costs; offline requests are evicted where it lacks memory,
the last admitted first. Phase 2 fills the step with offline decodes, then chunks, as long as its predicted seconds stay
within `step_budget_s`, the largest budget that profiling found to keep the target. Without a budget it is Sarathi++.

Different from the paper: the offline order is that of arrival, not by shared prefixes; an online request that finds no
room even with every offline one evicted evicts nobody; a step with nothing online runs at least one offline request,
even if the budget is shorter than any step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.offline import UNTRAINED_TOKENS
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.published.hygen_predictor import Batch, HygenPredictor
from vllm_hybrid.policy.published.orders import by_arrival
from vllm_hybrid.policy.request import Lane, RequestView


@dataclass(slots=True)
class _Step:
    """A step under construction, and what is left of it."""

    view: StepView
    batch: Batch
    plan: StepPlan
    tokens: int
    blocks: int
    slots: int
    heads: list[RequestView] = field(default_factory=list)  # online requests that come in
    stuck: bool = False  # one waits for memory that nobody can give
    offline_tokens: int = 0  # of the budget of a predictor that knows nothing yet

    @property
    def empty(self) -> bool:
        """Whether nothing would run."""
        return not self.heads and len(self.plan.order) == len(self.plan.paused)


class HygenPlanner:
    """Plans steps in two phases."""

    always = True

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        assert isinstance(predictor, HygenPredictor)
        options = config.presets.hygen
        self._predictor = predictor
        self._step_tokens = options.token_budget or math.inf
        self._budget_s = math.inf if options.step_budget_s is None else options.step_budget_s
        self._offline_runs = False

    def plan(self, view: StepView) -> StepPlan:
        """Decide one step."""
        tokens = int(min(view.max_tokens, self._step_tokens))
        step = _Step(
            view,
            Batch(self._predictor, StepWork()),
            StepPlan(token_budget=tokens, order=[]),
            tokens=tokens,
            blocks=view.free_blocks,
            slots=view.free_slots,
            offline_tokens=tokens if self._predictor.ready or self._budget_s == math.inf else UNTRAINED_TOKENS,
        )
        groups = Groups.of(view.running)
        self._online(step, groups)
        self._admit_online(step, groups)
        self._offline(step, groups)
        step.plan.candidates = self._candidates(step)
        self._offline_runs = groups.offline
        return step.plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """While the same requests decode, until their growing context passes the budget."""
        return not self._offline_runs or self._predictor.seconds(work) <= self._budget_s

    # -- phase 1 -------------------------------------------------------------------------------------------------------
    @staticmethod
    def _online(step: _Step, groups: Groups) -> None:
        """Every online decode, then the prompts under computation."""
        for v in groups.online_decodes:
            step.batch.add_decode(v.computed_tokens)
        step.plan.order += groups.online_decodes
        decode_tokens = len(groups.online_decodes) * step.view.decode_tokens
        step.plan.token_budget = min(step.view.max_tokens, max(step.tokens, decode_tokens))  # none is ever held back
        step.tokens -= decode_tokens
        step.blocks -= len(groups.online_decodes)  # one more each, at worst
        for v in groups.online_prefills:
            _add_chunk(step, v, step.tokens)

    def _admit_online(self, step: _Step, groups: Groups) -> None:
        """Place waiting online requests in order of arrival; evict offline ones where memory or a slot is short."""
        view = step.view
        evictable = groups.offline_decodes + groups.offline_prefills
        position = {v: i for i, v in enumerate(view.running)}
        evictable.sort(key=position.__getitem__)
        with contextlib.closing(by_arrival(view, Lane.ONLINE)) as line:
            for v in filter(view.ready, line):
                if step.tokens < 1:
                    return
                if not _place(step, v, evictable):
                    step.stuck = True
                    return
                chunk = min(step.tokens, v.missing_tokens, view.max_chunk_tokens)
                step.heads.append(v)
                step.tokens -= chunk
                step.batch.add_chunk(chunk)
                if chunk < v.missing_tokens:
                    step.plan.caps[v.request_id] = chunk

    # -- phase 2 -------------------------------------------------------------------------------------------------------
    def _offline(self, step: _Step, groups: Groups) -> None:
        """Offline requests that run already: decodes, then chunks."""
        gone, decode_tokens = set(step.plan.preempt), step.view.decode_tokens
        paused = []
        for v in groups.offline_decodes:
            if v in gone:
                continue
            fits = min(step.tokens, step.offline_tokens) >= decode_tokens
            if step.empty or (fits and step.batch.decode_fits(v.computed_tokens, self._budget_s)):
                step.plan.order.append(v)
                step.batch.add_decode(v.computed_tokens)
                step.tokens -= decode_tokens
                step.offline_tokens -= decode_tokens
            else:
                paused.append(v)
        for v in groups.offline_prefills:
            if v not in gone:
                limit = self._chunk(step, force=step.empty)
                step.offline_tokens -= min(limit, v.missing_tokens)
                _add_chunk(step, v, limit)
        step.plan.order += paused
        step.plan.paused += paused

    def _chunk(self, step: _Step, force: bool) -> int:
        """Most tokens of one more offline chunk."""
        within = step.batch.chunk_within(self._budget_s)
        tokens = int(min(within, step.tokens, step.offline_tokens))
        return min(UNTRAINED_TOKENS, step.tokens) if force and tokens < 1 else max(0, tokens)

    def _candidates(self, step: _Step) -> Iterator[RequestView]:
        """The online requests that were placed, then offline ones within what is left."""
        view = step.view
        for v in list(step.heads):
            if view.admissible_tokens(v, 0):
                yield v
            else:
                step.heads.remove(v)  # for another reason than memory (a LoRA slot)
        if step.stuck:
            return
        with contextlib.closing(self._offline_line(view)) as line:
            for v in filter(view.ready, line):
                needed = view.admissible_tokens(v, 0)
                if not needed and not v.started:  # one that ran before would shut out online newcomers too
                    step.plan.shut_by = v
                limit = min(self._chunk(step, force=step.empty), view.max_chunk_tokens)
                if not needed or limit < 1:
                    return
                chunk = min(needed, limit)
                if chunk < needed:
                    step.plan.caps[v.request_id] = chunk
                step.heads.append(v)
                step.tokens -= chunk
                step.offline_tokens -= chunk
                step.batch.add_chunk(chunk)
                yield v

    def _offline_line(self, view: StepView) -> Generator[RequestView, None, None]:
        """Offline requests in the order of their admission."""
        return by_arrival(view, Lane.OFFLINE)


def _add_chunk(step: _Step, v: RequestView, limit: int) -> None:
    """The next chunk of a running prompt, at most `limit` tokens; it pauses where there are none."""
    step.plan.order.append(v)
    chunk = min(limit, v.missing_tokens, step.view.max_chunk_tokens)
    if chunk < 1:
        step.plan.paused.append(v)
        return
    if chunk < v.missing_tokens:
        step.plan.caps[v.request_id] = chunk
    step.tokens -= chunk
    step.batch.add_chunk(chunk)
    step.blocks -= -(-chunk // step.view.block_tokens)


def _place(step: _Step, v: RequestView, evictable: list[RequestView]) -> bool:
    """Find memory and a slot for an online request, if need be by evicting from the end of `evictable`."""
    view = step.view
    missing, slots = view.blocks_needed(v) - step.blocks, step.slots
    victims: list[RequestView] = []
    for victim in reversed(evictable):
        if missing <= 0 and slots > 0:
            break
        if blocks := view.reclaimable_blocks(victim):
            victims.append(victim)
            missing -= blocks
            slots += 1
    if slots < 1 or (missing > 0 and (view.running or step.heads or not view.admissible_tokens(v, 0))):
        return False
    step.plan.preempt += victims
    for victim in victims:
        evictable.remove(victim)
    step.blocks, step.slots = -missing, slots - 1
    return True
