"""Apt-Serve (SIGMOD'25, arXiv 2504.07494): per iteration, the requests that have waited longest per block of memory.

An iteration is prefill only or decode only: decodes run when the running requests' pending time outweighs that of the
waiting ones, or when no prompt fits. Within an iteration a greedy by value density picks whom the memory serves, at
least half as much value as any choice could; running requests that a decode iteration does not pick lose their memory.
A request past its target is worth next to nothing: it is served from spare memory.

Where the cache has a half form (`cache`), the same greedy gives it to the requests that it pays for (`apt_choice`);
rho, the price of a block in it, is what the workers measured at start. The form is chosen where a prompt comes in.

As published, less the defects of the released code: the fallback to one request of great value really schedules it,
and a first prompt larger than the step is computed in chunks, not lost; what has the half form decodes in it; upgrades
ask for memory only. A request goes from the half form to KV as under every preset, by a move when the memory would do
for everything, where the paper discards its cache and computes it anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.published.apt_choice import Entry, densest, densest_in_forms
from vllm_hybrid.policy.request import RequestView

_FAINT = 1e-4  # what is left of the value of a request past its target, as in the released code


class AptPlanner:
    """Plans prefill-only and decode-only iterations."""

    always = True

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        online = config.slo.online
        self._ttft_s = math.inf if online.ttft_s is None else online.ttft_s
        self._tbt_s = math.inf if online.tbt_s is None else online.tbt_s

    def plan(self, view: StepView) -> StepPlan:
        """Decide one iteration."""
        decodes = [v for v in view.running if not v.prefilling]
        started = [v for v in view.running if v.prefilling]  # prompts longer than a step
        self._date(decodes, view.last_output_s)
        waiting = list(view.waiting)
        running_s = sum(self._pending_s(v, view.now_s) for v in decodes)
        waiting_s = sum(self._pending_s(v, view.now_s) for v in waiting)
        waiting_s += sum(self._pending_s(v, view.now_s) for v in started)
        if running_s <= waiting_s:
            picked = self._pick_prompts(view, started, waiting)
            if picked or started:
                return self._prefill(view, started, decodes, [e.view for e in picked])
        return self._decode(view, started, decodes)

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """Every iteration is decided anew."""
        return False

    # -- values --------------------------------------------------------------------------------------------------------
    @staticmethod
    def _date(decodes: Iterable[RequestView], last_output_s: float) -> None:
        """Note when each request got its last token."""
        for v in decodes:
            if v.output_tokens > v.dated_tokens:
                v.dated_tokens, v.last_token_s = v.output_tokens, last_output_s

    @staticmethod
    def _pending_s(v: RequestView, now_s: float) -> float:
        return now_s - (v.last_token_s if v.dated_tokens else v.arrival_s)

    def _entries(self, view: StepView, tokens: Mapping[RequestView, int]) -> list[Entry]:
        """tokens: what each request would compute in this iteration."""
        pending = [self._pending_s(v, view.now_s) for v in tokens]
        faint = min(pending, default=0.0) * _FAINT / view.total_blocks
        entries = []
        for (v, count), pending_s in zip(tokens.items(), pending):
            blocks = _blocks(v, v.computed_tokens + count, view.block_tokens)
            late = self._late(v, pending_s)
            entries.append(Entry(v, faint * blocks if late else pending_s, blocks, count, late))
        return entries

    def _late(self, v: RequestView, pending_s: float) -> bool:
        return pending_s > (self._tbt_s if v.dated_tokens else self._ttft_s)

    # -- prefill -------------------------------------------------------------------------------------------------------
    def _pick_prompts(
        self, view: StepView, started: Sequence[RequestView], waiting: Sequence[RequestView]
    ) -> list[Entry]:
        if view.free_slots < 1:
            return []
        tokens = view.max_tokens - sum(v.missing_tokens for v in started)
        if tokens < 1:
            return []
        blocks = view.free_blocks if view.running else view.total_blocks  # the watermark is for growth
        blocks -= sum(-(-v.missing_tokens // view.block_tokens) for v in started)

        def usable(v: RequestView) -> bool:
            return view.ready(v) and view.admissible_tokens(v, 0) > 0

        entries = self._entries(view, {v: v.missing_tokens for v in waiting})
        if view.half_ratio == 1:
            return densest(entries, blocks, tokens, view.free_slots, usable)
        in_time = sum(not e.late for e in entries)
        in_time += sum(not self._late(v, self._pending_s(v, view.now_s)) for v in view.running)
        price_s = in_time * max(0.0, view.half_block_s)
        return densest_in_forms(entries, view.half_ratio, price_s, blocks, tokens, view.free_slots, usable)

    @staticmethod
    def _prefill(
        view: StepView, started: list[RequestView], decodes: list[RequestView], picked: list[RequestView]
    ) -> StepPlan:
        return StepPlan(
            token_budget=view.max_tokens,
            order=started + decodes,
            paused=decodes,
            candidates=_while_they_fit(view, picked),
        )

    # -- decode --------------------------------------------------------------------------------------------------------
    def _decode(self, view: StepView, started: list[RequestView], decodes: list[RequestView]) -> StepPlan:
        """Every running request decodes if the next tokens find blocks, else the densest of them."""
        size, more = view.block_tokens, view.decode_tokens
        held_blocks = sum([_blocks(v, v.computed_tokens, size) for v in decodes])
        next_blocks = sum([_blocks(v, v.computed_tokens + more, size) for v in decodes])
        room_blocks = held_blocks + max(0, view.free_blocks)
        if next_blocks <= room_blocks:
            return StepPlan(token_budget=view.max_tokens, order=decodes + started, paused=started)
        kept = [e.view for e in densest(self._entries(view, dict.fromkeys(decodes, more)), room_blocks)]
        chosen = set(kept)
        others = [v for v in decodes if v not in chosen]
        lost = [v for v in others if view.reclaimable_blocks(v)]
        bound = [v for v in others if v not in lost]  # whose blocks must not move now
        return StepPlan(
            token_budget=view.max_tokens, order=kept + bound + started, paused=started + bound, preempt=lost
        )


def _blocks(v: RequestView, tokens: int, block_tokens: int) -> int:
    """That so many tokens of a request take in the form that it has."""
    blocks = -(-tokens // block_tokens)
    return -(-blocks // v.halves)


def _while_they_fit(view: StepView, picked: Iterable[RequestView]) -> Iterator[RequestView]:
    for v in picked:
        if view.admissible_tokens(v, 0):
            yield v
