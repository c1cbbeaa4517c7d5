"""The memory gate: nobody is admitted whom what already runs may have to be preempted for (engine of the VTC paper).

A request may grow until its max_tokens. A decode grows by one token a step and then leaves, so the memory that all
need together is largest right before one of them leaves: with the longest stay first, the k-th of them leaves when
those before it still hold what they hold now and one token more per step. This peak must stay within the pool. A
request whose steps cannot be foreseen (offline work that may pause, speculation, a prompt that others may overtake)
counts with its full length for ever. As the true use never exceeds the bound, nothing is ever preempted for memory.

Different from the paper, which counts tokens: here blocks are counted, exactly; and a prompt under computation stays
longer by the steps that it takes, because decodes do not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
from bisect import insort
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate

from vllm_hybrid.policy.exchange import LEAST_STEPS, Exchange, without
from vllm_hybrid.policy.expected import ExpectedGate
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.survival import Survival

_RECHECK_STEPS = 10  # between two looks at a head that did not fit, while nobody leaves; as in the paper's engine
_LEAST_GROWTH, _STEPS_TO_SPARE = 0.25, 4.0  # of `ExpectingPlanner.plan`
_LAG_STEPS = 1  # an asynchronous engine schedules one more step before it learns that a request ended

Stay = tuple[int, int]
"""(minus the steps until a request leaves, tokens it holds now); sorted, the longest stay comes first."""


def peak_blocks(stays: Iterable[Stay], block_tokens: int) -> int:
    """Most blocks that requests hold together if each gains a token per step until it leaves. Longest stay first."""
    stays = list(stays)
    held = accumulate(tokens for _, tokens in stays)
    totals = [total - count * minus_steps for count, (total, (minus_steps, _)) in enumerate(zip(held, stays), 1)]
    peak = -(-max(totals, default=0) // block_tokens)
    residues = [0] * block_tokens  # how many of the requests so far hold so many tokens beyond full blocks
    for count, (total, (minus_steps, tokens)) in enumerate(zip(totals, stays), 1):
        residues[tokens % block_tokens] += 1
        if total + count * (block_tokens - 1) >= (peak + 1) * block_tokens:  # else rounding up cannot make it the peak
            unused = sum(n * ((minus_steps - r) % block_tokens) for r, n in enumerate(residues) if n)
            peak = max(peak, (total + unused) // block_tokens)
    return peak


@dataclass(slots=True)
class Gate:
    """The memory that the requests of a step may come to need.

    prompt_tokens_per_step: computed of started prompts in every step, in the order of their admission; 0: not known.
    drafts: speculative tokens per decode, which may hold memory beyond the request's end.
    """

    pool_blocks: int
    block_tokens: int
    prompt_tokens_per_step: int = 0
    drafts: int = 0
    stays: list[Stay] = field(default_factory=list)
    peak_blocks: int = 0
    fixed_blocks: int = 0
    missing_tokens: int = 0  # of the prompts under computation

    @classmethod
    def of(cls, view: StepView, step_tokens: float) -> Gate:
        """The gate before a step. step_tokens: shared by decodes and, in order, by started prompts; 0: not known."""
        slots = len(view.running) + view.free_slots
        uncut = view.max_chunk_tokens >= view.max_tokens
        gate = cls(
            pool_blocks=view.total_blocks - 1,  # one is vLLM's null block
            block_tokens=view.block_tokens,
            prompt_tokens_per_step=max(0, int(min(step_tokens, view.max_tokens)) - slots) if uncut else 0,
            drafts=view.decode_tokens - 1,
        )
        for request in view.running:
            gate._count(request, request.prefilling)
        gate.fixed_blocks += sum(map(gate._final_blocks, view.parked))
        gate.stays.sort()
        gate.peak_blocks = peak_blocks(gate.stays, gate.block_tokens)
        return gate

    @property
    def idle(self) -> bool:
        """Whether nobody holds memory."""
        return not self.stays and not self.fixed_blocks

    @property
    def room_blocks(self) -> int:
        """Blocks that nobody will come to need."""
        return self.pool_blocks - self.fixed_blocks - self.peak_blocks

    def demand_blocks(self, request: RequestView) -> int:
        """What the admission of a waiting request takes of the room."""
        stay = self._stay(request, prefilling=True)
        if stay is None:
            return self._final_blocks(request)
        stays = self.stays.copy()
        insort(stays, stay)
        return peak_blocks(stays, self.block_tokens) - self.peak_blocks

    def supply_blocks(self, request: RequestView) -> int:
        """What a running or parked request leaves to the room when it gives up its memory; 0 if that is not known."""
        return self._final_blocks(request) if self._stay(request, request.prefilling) is None else 0

    def admit(self, request: RequestView) -> None:
        """The request came in."""
        self._count(request, prefilling=True)
        self.stays.sort()
        self.peak_blocks = peak_blocks(self.stays, self.block_tokens)

    def _count(self, request: RequestView, prefilling: bool) -> None:
        stay = self._stay(request, prefilling)
        if stay is None:
            self.fixed_blocks += self._final_blocks(request)
        else:
            self.stays.append(stay)
        self.missing_tokens += request.missing_tokens if prefilling else 0

    def _stay(self, request: RequestView, prefilling: bool) -> Stay | None:
        """None: it may hold its full length for longer than can be foreseen."""
        if self.drafts or request.key[0] is Lane.OFFLINE or (prefilling and not self.prompt_tokens_per_step):
            return None
        tokens, steps = request.computed_tokens, _LAG_STEPS
        if prefilling:
            tokens += request.missing_tokens
            steps += -(-(self.missing_tokens + request.missing_tokens) // self.prompt_tokens_per_step)
        return -max(0, self._final_tokens(request) - tokens) - steps, tokens

    def _final_tokens(self, request: RequestView) -> int:
        # The last token's KV is never computed.
        return request.prompt_tokens + request.max_output_tokens - 1 + self.drafts

    def _final_blocks(self, request: RequestView) -> int:
        return -(-self._final_tokens(request) // self.block_tokens)


class GatedPlanner:
    """Shows a planner the pool as the gate sees it: room is what nobody will come to need.

    step_tokens: as for `Gate.of`.
    """

    always = True
    gate_class = Gate

    def __init__(self, planner: Planner, step_tokens: float) -> None:
        self._planner = planner
        self._step_tokens = step_tokens

    def plan(self, view: StepView) -> StepPlan:
        """The planner's step, with the gate before its admissions."""
        if not len(view.waiting):
            return self._planner.plan(view)
        gate = self.gate_class.of(view, self._step_tokens)
        plan = self._planner.plan(_gated(view, gate))
        plan.candidates = _watched(plan.candidates, view, gate)
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """As the planner's own, but not for long: the peak falls while the running requests advance."""
        if steps > _RECHECK_STEPS:
            return False
        return self._planner.reusable(work, now_s, pending_s, last_output_s, steps)


def _gated(view: StepView, gate: Gate) -> StepView:
    parked = set(view.parked)

    def admissible_tokens(request: RequestView, reserve: int) -> int:
        if request in parked or gate.idle:
            return view.admissible_tokens(request, reserve)
        return view.admissible_tokens(request, 0) if gate.demand_blocks(request) <= gate.room_blocks else 0

    def blocks_needed(request: RequestView) -> int:
        if request in parked:
            return 0
        # There may be room for it in the end and no free block now (vLLM's watermark): then so much is wanting.
        short = view.blocks_needed(request) - view.free_blocks
        return max(gate.demand_blocks(request), gate.room_blocks + short if short > 0 else 0)

    def reclaimable_blocks(request: RequestView) -> int:
        return gate.supply_blocks(request) if view.reclaimable_blocks(request) else 0

    return replace(
        view,
        free_blocks=gate.room_blocks,
        admissible_tokens=admissible_tokens,
        blocks_needed=blocks_needed,
        reclaimable_blocks=reclaimable_blocks,
    )


def _watched(candidates: Iterable[RequestView], view: StepView, gate: Gate | LazyGate) -> Iterator[RequestView]:
    """The same candidates; the gate learns who of them came in."""
    with contextlib.closing(_opened(candidates)) as opened:
        for request in opened:
            yield request
            if view.admitted_tokens(request):
                gate.admit(request)


def _opened(candidates: Iterable[RequestView]) -> Generator[RequestView, None, None]:
    """As a generator, so that closing it closes them."""
    yield from candidates


class ExpectingPlanner:
    """Shows a planner only what the gate on expected memory lets in."""

    def __init__(
        self, planner: Planner, survival: Survival, predictor: StepTimePredictor, tbt_s: float | None = None
    ) -> None:
        self._planner = planner
        self.survival = survival
        self._predictor = predictor
        self._tbt_s = tbt_s
        self._exchange = None if tbt_s is None else Exchange(survival, tbt_s)
        self.always = planner.always

    def plan(self, view: StepView) -> StepPlan:
        """The planner's step, with the gate before its admissions; it costs nothing where nobody could come in."""
        if not len(view.waiting):
            return self._planner.plan(view)
        steps = self._steps(view)
        gate = LazyGate(view, self.survival, min(1.0, max(_LEAST_GROWTH, _STEPS_TO_SPARE / steps)))
        gone = self._exchange.settle(view, lambda: gate.made) if self._exchange and steps >= LEAST_STEPS else []
        if gone:
            view = without(view, gone)
        plan = self._planner.plan(_expecting(view, gate))
        plan.preempt += gone
        plan.candidates = _watched(plan.candidates, view, gate)
        return plan

    def _steps(self, view: StepView) -> float:
        """Steps of the running requests that the target between tokens allows for; 1 where nothing is known.

        That share of them, and some more, must be able to grow at once; the others keep the target all the same.
        """
        if self._tbt_s is None or not self._predictor.ready:
            return 1.0
        context_tokens = sum(v.computed_tokens for v in view.running)
        step_s = self._predictor.seconds(StepWork(decodes=len(view.running), context_tokens=context_tokens))
        return self._tbt_s / max(step_s, 1e-9)

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """As the planner's own."""
        return self._planner.reusable(work, now_s, pending_s, last_output_s, steps)


class LazyGate:
    """The gate of a step, made when it is first asked for."""

    def __init__(self, view: StepView, survival: Survival, growth: float) -> None:
        self._view = view
        self._survival = survival
        self._growth = growth

    @functools.cached_property
    def made(self) -> ExpectedGate:
        self._survival.refresh(self._view.running)
        return ExpectedGate(self._view, self._survival, self._growth)

    def fits(self, request: RequestView) -> bool:
        """Whether a waiting request may come in."""
        return self.made.fits(request)

    def admit(self, request: RequestView) -> None:
        """The request came in."""
        self.made.admit(request)


def _expecting(view: StepView, gate: LazyGate) -> StepView:
    parked = set(view.parked)

    def admissible_tokens(request: RequestView, reserve: int) -> int:
        return view.admissible_tokens(request, reserve) if request in parked or gate.fits(request) else 0

    def blocks_needed(request: RequestView) -> int:
        return view.blocks_needed(request) if request in parked or gate.fits(request) else view.total_blocks

    return replace(view, admissible_tokens=admissible_tokens, blocks_needed=blocks_needed)
