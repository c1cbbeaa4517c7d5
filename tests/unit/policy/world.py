"""The smallest world a policy can be tested in: requests and engine states made of plain numbers.

A `Pool` answers the three questions a `StepView` asks about blocks as vLLM's block pool would, without prefix hits:
a request holds the blocks of the tokens it computed, and its admission takes those of its whole prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings

from vllm_hybrid.config import load_config
from vllm_hybrid.policy.compose import HybridPlanner
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.latency_features import FEATURES
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.waiting import WaitingRequests

ONLINE, OFFLINE = Lane.ONLINE, Lane.OFFLINE
BLOCK_TOKENS = 16

_serial = itertools.count()


def examples(count: int) -> settings:
    """Hypothesis with this many examples; a failure prints what reproduces it. Time is nobody's business here."""
    return settings(max_examples=count, deadline=None, print_blob=True)


# -- requests ----------------------------------------------------------------------------------------------------------
def request(client: str = "a", lane: Lane = ONLINE, prompt_tokens: int = 64, **fields: Any) -> RequestView:
    """A request that waits; `fields` override any field of its record."""
    number = next(_serial)
    record: dict[str, Any] = {
        "request_id": f"r{number}",
        "key": (lane, client),
        "arrival_s": 0.0,
        "order_s": float(number),
        "priority": 0,
        "prompt_tokens": prompt_tokens,
        "max_output_tokens": 16,
        "handle": None,
        "missing_tokens": prompt_tokens,
    }
    return RequestView(**(record | fields))


def prefill(
    client: str = "a", lane: Lane = ONLINE, prompt_tokens: int = 64, done_tokens: int = 0, **fields: Any
) -> RequestView:
    """A running request whose prompt is computed up to `done_tokens`."""
    own = {"computed_tokens": done_tokens, "missing_tokens": prompt_tokens - done_tokens, "prefilling": True}
    return request(client, lane, prompt_tokens, **(own | fields))


def decode(client: str = "a", lane: Lane = ONLINE, context_tokens: int = 64, **fields: Any) -> RequestView:
    """A running request that generates, with the KV of `context_tokens`."""
    own = {"computed_tokens": context_tokens, "missing_tokens": 1, "output_tokens": 1}
    return request(client, lane, context_tokens, **(own | fields))


# -- memory ------------------------------------------------------------------------------------------------------------
def blocks_of(tokens: int) -> int:
    """Blocks that hold this many tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass
class Pool:
    """A block pool as a `StepView` asks about it."""

    total: int = 1000
    free: int = 1000
    watermark: int = 0
    somebody_runs: bool = True
    pinned: set[RequestView] = field(default_factory=set)  # may not be asked for their blocks now
    barred: set[RequestView] = field(default_factory=set)  # not admissible for another reason (a LoRA slot, say)
    blocked: set[RequestView] = field(default_factory=set)  # the engine passes it over (a grammar compiles, say)
    hit_tokens: dict[RequestView, int] = field(default_factory=dict)  # found in the prefix cache
    taken: set[RequestView] = field(default_factory=set)  # admitted, not only offered

    def needed(self, view: RequestView) -> int:
        return blocks_of(view.computed_tokens + view.missing_tokens) - blocks_of(view.computed_tokens)

    def admissible_tokens(self, view: RequestView, reserve: int) -> int:
        margin = self.watermark + reserve if self.somebody_runs else 0
        if view in self.barred or self.needed(view) + margin > self.free:
            return 0
        return view.missing_tokens - self.hit_tokens.get(view, 0)

    def ready(self, view: RequestView) -> bool:
        return view not in self.blocked

    def take(self, view: RequestView) -> None:
        """Admit a request."""
        self.free -= self.needed(view)
        self.somebody_runs = True
        self.taken.add(view)

    def admitted_tokens(self, view: RequestView) -> int:
        return view.missing_tokens if view in self.taken else 0

    @staticmethod
    def growth(view: RequestView, tokens: int) -> int:
        return blocks_of(view.computed_tokens + tokens) - blocks_of(view.computed_tokens)

    def reclaimable(self, view: RequestView) -> int:
        return 0 if view in self.pinned else blocks_of(view.computed_tokens)


# -- the engine's state ------------------------------------------------------------------------------------------------
def plain_counters(**weights: float) -> VirtualCounters:
    """Counters with the prices of the VTC paper."""
    return VirtualCounters(1.0, 2.0, weights)


def waiting(
    views: Iterable[RequestView] = (), counters: VirtualCounters | None = None, by_priority: bool = False
) -> WaitingRequests:
    """A queue that holds `views`."""
    queue = WaitingRequests(plain_counters() if counters is None else counters, by_priority)
    for view in views:
        queue.add(view)
    return queue


def step_view(
    running: Sequence[RequestView] = (),
    queue: WaitingRequests | None = None,
    pool: Pool | None = None,
    parked: Sequence[RequestView] = (),
    slots: int = 16,
    **fields: Any,
) -> StepView:
    """An engine with `slots` slots right before a step; `fields` override any field of the view."""
    pool = Pool() if pool is None else pool
    pool.somebody_runs = bool(running)
    record: dict[str, Any] = {
        "now_s": 100.0,
        "running": running,
        "parked": parked,
        "waiting": waiting() if queue is None else queue,
        "free_slots": slots - len(running),
        "free_blocks": pool.free - pool.watermark,
        "growth_blocks_free": pool.total,  # enough, unless a test says otherwise
        "block_tokens": BLOCK_TOKENS,
        "total_blocks": pool.total,
        "max_tokens": 512,
        "max_chunk_tokens": fields.get("max_tokens", 512),
        "decode_tokens": 1,
        "last_output_s": fields.get("now_s", 100.0),
        "pending_s": 0.0,
        "ready": pool.ready,
        "admissible_tokens": pool.admissible_tokens,
        "admitted_tokens": pool.admitted_tokens,
        "blocks_needed": pool.needed,
        "reclaimable_blocks": pool.reclaimable,
        "growth_blocks": pool.growth,
    }
    return StepView(**(record | fields))


# -- the policy --------------------------------------------------------------------------------------------------------
def trained(
    constant_s: float = 0.0,
    decode_s: float = 0.0,
    prefill_token_s: float = 0.0,
    context_token_s: float = 0.0,
    pair_s: float = 0.0,
    margin: float = 0.0,
) -> StepTimePredictor:
    """A predictor that has learned exactly these figures."""
    predictor = StepTimePredictor()
    price = {"constant": constant_s, "decodes": decode_s, "context": context_token_s, "pairs": pair_s}
    price["prefill_tokens"] = prefill_token_s
    predictor.coefficients = [price.get(name, price.get(name.split("_")[0], 0.0)) for name in FEATURES]
    predictor.windows = 1000
    predictor.margin = margin
    return predictor


def planner(
    slo: dict[str, Any] | None = None,
    counters: VirtualCounters | None = None,
    predictor: StepTimePredictor | None = None,
    interval_s: float = 5.0,
) -> HybridPlanner:
    """The policy; `slo` are the targets of the online lane, `idle_step_s` among them."""
    online = dict(slo or {})
    section: dict[str, Any] = {"idle_step_s": online.pop("idle_step_s")} if "idle_step_s" in online else {}
    config = load_config(
        {"slo": section | {"online": online}, "lanes": {"offline": {"preempt_interval_s": interval_s}}}
    )
    return HybridPlanner(config, counters or plain_counters(), predictor or StepTimePredictor())


def work_of(decodes: Iterable[RequestView], chunks: Iterable[tuple[RequestView, int]] = ()) -> StepWork:
    """What a step with these decodes and prefill chunks computes."""
    work = StepWork()
    for view in decodes:
        work.decodes += 1
        work.context_tokens += view.computed_tokens
    for view, tokens in chunks:
        work.prefills += 1
        work.done_tokens += view.computed_tokens
        work.prefill_tokens += tokens
        work.pairs += tokens * (view.computed_tokens + tokens / 2)
    return work


def admissions(
    pool: Pool, queue: WaitingRequests, candidates: Iterable[RequestView], slots: int = 10**6
) -> Iterator[RequestView]:
    """Admit candidates as the engine does, one before the next is asked for, until the slots are used up.

    Those it passes over leave the queue and are put back afterwards.
    """
    put_aside: list[RequestView] = []
    for view in candidates:
        queue.discard(view)
        if not pool.ready(view):
            put_aside.append(view)
            continue
        pool.take(view)
        yield view
        slots -= 1
        if slots < 1:
            break
    for view in reversed(put_aside):
        queue.prepend(view)
