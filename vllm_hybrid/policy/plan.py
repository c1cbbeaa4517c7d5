"""The two records that pass between adapter and policy, once per engine step.

`StepView` is what the policy may know, `StepPlan` what it may decide. A plan is legal if `check_plan` accepts it; what
the engine then did is held against it by `check_obedience`. Both checks are cheap enough to run on every planned step.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waiting import WaitingRequests
from vllm_hybrid.policy.waits import Reason


class PlanError(Exception):
    """A plan that breaks a rule, or an engine step that did not follow its plan."""


@dataclass(slots=True)
class StepView:
    """State of the engine right before a step.

    `ready(view)`: whether a waiting request could run, room apart (its grammar is compiled, its last output delivered).
    `admissible_tokens(view, reserve)`: prefill tokens that the admission of a waiting or parked request would
    compute, prefix hits deducted, if it could be admitted now, after the admissions made so far in this step, and
    left `reserve` blocks free; 0 if it could not (no reserve is asked for when nothing runs).
    `admitted_tokens(view)`: what a candidate that was offered has left to compute if the engine took it, else 0.
    `blocks_needed(view)`: KV blocks that the admission of a waiting or parked request takes.
    `reclaimable_blocks(view)`: KV blocks that come free when a running or parked request gives up its memory; 0 if
    they may not be taken now.
    `growth_blocks(view, tokens)`: KV blocks that a running request takes for `tokens` more.
    """

    now_s: float
    running: Sequence[RequestView]
    parked: Sequence[RequestView]
    waiting: WaitingRequests
    free_slots: int
    free_blocks: int  # for admissions
    growth_blocks_free: int  # for running requests: the watermark is not kept from them
    block_tokens: int  # tokens of one block
    total_blocks: int
    max_tokens: int  # most tokens a step may hold
    max_chunk_tokens: int  # most prefill tokens of one request in a step
    decode_tokens: int  # tokens one decode takes: 1 + speculative drafts
    last_output_s: float  # when the last tokens were delivered
    pending_s: float  # seconds that steps already under way are predicted to take still
    ready: Callable[[RequestView], bool]
    admissible_tokens: Callable[[RequestView, int], int]
    admitted_tokens: Callable[[RequestView], int]
    blocks_needed: Callable[[RequestView], int]
    reclaimable_blocks: Callable[[RequestView], int]
    growth_blocks: Callable[[RequestView, int], int]
    admission_halves: int = 1  # of the blocks of a request that is admitted now fit into one: 1 with KV
    half_ratio: int = 1  # half blocks of one block: 1 where the cache has no half form
    half_block_s: float = 0.0  # seconds that a step takes longer for a block of context in the half form


def cached_tokens(view: StepView) -> Callable[[RequestView], int]:
    """What the prefix cache holds of a waiting request's prompt; 0 where it does not fit now."""

    def cached(request: RequestView) -> int:
        tokens = view.admissible_tokens(request, 0)
        return max(0, request.missing_tokens - tokens) if tokens else 0

    return cached


@dataclass(slots=True)
class StepPlan:
    """What one step shall do.

    order: every running request that is neither preempted nor parked, in service order; the last ones lose their blocks
        first if a decode finds none.
    paused: those of `order` that keep their blocks and get no token in this step.
    caps: request id -> most tokens for it in this step (>= 1; prefill only: a decode is never cut).
    preempt: running requests that give up slot and blocks before the step, and recompute later.
    park: running requests that give up their slot and keep their blocks; one with tokens in flight is paused instead.
    drop: parked requests that give up their blocks as well.
    unpark: parked requests that may come back in this step.
    candidates: waiting requests in the order of admission, asked for one at a time; may be endless in cost, so lazy.
    shut_by: the request at the head of the line for want of whose memory nobody was admitted; while it is still
        next, and nobody leaves, nobody can be.
    reserve_blocks: what every admission leaves free: while no more than that is free, and nobody leaves, the plan
        stands. None: no such promise.
    shut_steps: for so many steps the plan stands although requests wait: none of them was found memory, and only one
        that leaves or arrives is likely to change that. Known when all candidates were asked for.
    held: why the admissions of a lane ended before its last waiting request, where the policy ended them; filled in
        while the candidates are asked for.
    """

    token_budget: int
    order: list[RequestView]
    paused: list[RequestView] = field(default_factory=list)
    caps: dict[str, int] = field(default_factory=dict)
    preempt: list[RequestView] = field(default_factory=list)
    park: list[RequestView] = field(default_factory=list)
    drop: list[RequestView] = field(default_factory=list)
    unpark: list[RequestView] = field(default_factory=list)
    candidates: Iterable[RequestView] = ()
    shut_by: RequestView | None = None
    reserve_blocks: int | None = None
    shut_steps: int = 0
    held: dict[Lane, Reason] = field(default_factory=dict)


def check_plan(view: StepView, plan: StepPlan) -> None:
    """Raise PlanError if `plan` could not be carried out on `view`. O(running) in C, no Python loop over `order`."""
    if not 1 <= plan.token_budget <= view.max_tokens:
        raise PlanError(f"token budget {plan.token_budget} is outside 1..{view.max_tokens}")
    gone = set(plan.preempt)
    gone.update(plan.park)
    if len(gone) != len(plan.preempt) + len(plan.park):
        raise PlanError("a request is preempted or parked twice")
    kept = set(plan.order)
    running = set(view.running)
    if len(kept) != len(plan.order) or kept & gone or kept | gone != running:
        raise PlanError("order, preempt and park together are not the running requests, each once")
    if not kept.issuperset(plan.paused):
        raise PlanError("a paused request is not in the order")
    if plan.caps and min(plan.caps.values()) < 1:
        raise PlanError("a cap is below one token")
    parked = set(view.parked)
    if len(set(plan.drop)) != len(plan.drop) or len(set(plan.unpark)) != len(plan.unpark):
        raise PlanError("a request is dropped or unparked twice")
    if not parked.issuperset(plan.drop) or not parked.issuperset(plan.unpark) or set(plan.drop) & set(plan.unpark):
        raise PlanError("a request to drop or unpark is not parked, or is in both lists")


@dataclass(slots=True)
class StepResult:
    """What the engine did in a step.

    scheduled: request id -> tokens, of which `drafts` (request id -> draft tokens) are speculative. admitted: ids
    that came in from a waiting queue. offered: ids that could come in. least_chunk_tokens: the model
    cannot be given smaller prefill chunks, whatever the cap.
    """

    total_tokens: int
    scheduled: Mapping[str, int]
    drafts: Mapping[str, Sequence[int]]
    admitted: Iterable[str]
    offered: Container[str]
    least_chunk_tokens: int = 1


def check_obedience(plan: StepPlan, result: StepResult) -> None:
    """Raise PlanError if a step did something its plan did not allow. O(what the plan restricts + admitted)."""
    scheduled = result.scheduled
    if result.total_tokens > plan.token_budget:
        raise PlanError(f"{result.total_tokens} tokens scheduled, the plan allowed {plan.token_budget}")
    for name, group in (("paused", plan.paused), ("preempted", plan.preempt), ("parked", plan.park)):
        for view in group:
            if view.request_id in scheduled:
                raise PlanError(f"{name} request {view.request_id} was scheduled")
    for request_id, cap in plan.caps.items():
        # A decode is padded with drafts after the cap was applied.
        tokens = scheduled.get(request_id, 0) - len(result.drafts.get(request_id, ()))
        if tokens > max(cap, result.least_chunk_tokens):
            raise PlanError(f"{request_id} got {tokens} tokens, its cap is {cap}")
    unparked = {view.request_id for view in plan.unpark}
    for request_id in result.admitted:
        if request_id not in result.offered and request_id not in unparked:
            raise PlanError(f"{request_id} was admitted without having been offered")
