"""Pace: where blocks run short, decodes with time to spare wait for them, and nobody loses its memory before that.

Left alone, vLLM takes the memory of whoever is last as soon as a decode finds no block. But a target of a second
between tokens leaves most decodes dozens of steps to spare. So those who have generated most go on, each of the others
takes a block only if it leaves one to everybody before it, and waits without losing anything while its own next token
is not due. Requests whose first token was late may wait `LATE_GAPS` times as long. Only who can wait no longer takes
the memory of somebody else: of a late request first, then of the one with least to compute again.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import RequestView

LATE_GAPS = 3.0  # times the target between tokens, for requests that are late anyhow
_AIM = 0.9  # of the target


class Pace:
    """Settles the growth of online decodes in a plan without offline work.

    tbt_s: target between tokens. step_s: seconds that the step is predicted to take.
    """

    def __init__(self, view: StepView, plan: StepPlan, tbt_s: float, step_s: float) -> None:
        self._view = view
        self._plan = plan
        self._tbt_s = tbt_s
        self._soon_s = view.now_s + view.pending_s + 2.0 * step_s  # a token not in this step comes then

    def settle(self, decodes: Sequence[RequestView], prefills: Sequence[RequestView]) -> None:
        """Pause and preempt until every request left in the step finds its blocks."""
        view, plan = self._view, self._plan
        per_decode = 2 + view.decode_tokens // view.block_tokens
        free = view.growth_blocks_free
        if per_decode * len(decodes) + plan.token_budget // view.block_tokens <= free:
            return
        for request in prefills:
            if request not in plan.paused:
                tokens = min(plan.caps.get(request.request_id, view.max_chunk_tokens), request.missing_tokens)
                free -= view.growth_blocks(request, tokens)
        urgent: set[RequestView] = set()
        ranked = sorted(decodes, key=lambda v: (v.late, -v.output_tokens))
        for before, request in enumerate(ranked):
            blocks = view.growth_blocks(request, view.decode_tokens)
            if not blocks or blocks <= free - before:
                free -= blocks
            elif self._can_wait(request):
                plan.paused.append(request)
            else:
                free -= blocks
                urgent.add(request)
        if ranked and len(plan.paused) == len(plan.order):  # nobody would run, so nobody would ever finish
            free -= view.growth_blocks(ranked[0], view.decode_tokens)
            plan.paused.remove(ranked[0])
            urgent.add(ranked[0])
        if free < 0:
            self._take(-free, ranked, urgent)

    def _can_wait(self, request: RequestView) -> bool:
        limit_s = self._tbt_s * (LATE_GAPS if request.late else _AIM)
        return request.last_token_s + limit_s > self._soon_s  # False too while no token was seen

    def _take(self, missing: int, ranked: Sequence[RequestView], urgent: set[RequestView]) -> None:
        """Preempt until `missing` blocks are there; those that wait before those that must run."""
        view, plan = self._view, self._plan
        victims = sorted(ranked[1:], key=lambda v: (v in urgent, not v.late, v.computed_tokens))
        gone: dict[RequestView, None] = {}  # in order: a set's would differ from run to run
        for victim in victims:
            if missing <= 0:
                break
            blocks = view.reclaimable_blocks(victim)
            if blocks:
                missing -= blocks + (view.growth_blocks(victim, view.decode_tokens) if victim in urgent else 0)
                gone[victim] = None
        plan.preempt += gone
        plan.order = [v for v in plan.order if v not in gone]
        plan.paused = [v for v in plan.paused if v not in gone]
