"""How far apart the counters of clients are that wait in the same lane, and the bound on it where there is one.

What is kept is the largest gap at the end of any step since it was last asked for. A counter is charged only while its
client runs something, so a gap can only grow for clients that were just charged: those are looked at, O(1) each. The
argument for the bound is in docs/design/fairness_bound.md. It needs that running requests cannot outgrow the pool
(`memory.gate: max_tokens`) and that nobody loses its memory to another lane; elsewhere none is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.cost import SecondPrices
from vllm_hybrid.policy.fairness import Parent, VirtualCounters
from vllm_hybrid.policy.latency_model import NOTHING
from vllm_hybrid.policy.request import ClientKey, Lane
from vllm_hybrid.policy.waiting import WaitingRequests


class GapExceeded(AssertionError):
    """Two clients that wait are further apart than the bound allows."""


class ServiceGaps:
    """Largest gap by lane since the last `take`. Only tests `check` it against the bound."""

    def __init__(self, counters: VirtualCounters, waiting: WaitingRequests) -> None:
        self._counters = counters
        self._waiting = waiting
        self.largest = dict.fromkeys(Lane, 0.0)

    def charged(self, keys: Iterable[ClientKey]) -> None:
        """These clients were charged."""
        counters, waiting = self._counters, self._waiting
        top: dict[Parent, float] = {}
        for key in keys:
            if not waiting.waits(key) or (waiting.slots_left is not None and waiting.slots_left(key) <= 0):
                continue
            node: Parent = key
            while not isinstance(node, Lane):
                parent = counters.parent(node)
                value = counters.value(node)
                if value > top.get(parent, 0.0):
                    top[parent] = value
                node = parent
        for parent, value in top.items():
            smallest = waiting.smallest_counter(parent)
            lane = parent if isinstance(parent, Lane) else parent[0]
            if smallest is not None and value - smallest > self.largest[lane]:
                self.largest[lane] = value - smallest

    def take(self) -> dict[Lane, float]:
        """The largest gaps, and begin anew."""
        taken, self.largest = self.largest, dict.fromkeys(Lane, 0.0)
        return taken

    def check(self, bounds: dict[Lane, float | None]) -> None:
        """Raise GapExceeded where a lane's largest gap exceeds its bound. For tests."""
        for lane, bound in bounds.items():
            if bound is not None and self.largest[lane] > bound:
                raise GapExceeded(f"{lane.label}: counters {self.largest[lane]:.0f} apart, the bound is {bound:.0f}")


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What of the engine the bound depends on.

    one_prefill: prompts are computed one after the other. allowed_gap: service by which a client may fall behind while
    its requests are late (`WaitingRequests`).
    """

    pool_tokens: int
    longest_tokens: int  # of a sequence
    slots: int
    drafts: int = 0
    one_prefill: bool = True
    allowed_gap: float = 0.0


def gap_bounds(config: HybridConfig, counters: VirtualCounters, shape: EngineShape) -> dict[Lane, float | None]:
    """The bound on the counters' gap in each lane under these settings; None where there is none."""
    bound = None
    if config.preset in ("hybrid", "vtc") and config.memory.gate == "max_tokens":
        bound = _bound(config, counters, shape)
    # Offline work of `hybrid` may lose its memory to online requests, and comes back before anything new of its lane.
    return {Lane.ONLINE: bound, Lane.OFFLINE: None}


def _bound(config: HybridConfig, counters: VirtualCounters, shape: EngineShape) -> float | None:
    prices, longest = counters.prices, shape.longest_tokens
    if isinstance(prices, SecondPrices):
        return None  # prices change while they are learned
    prompt = prices.prompt(longest, 0, True, NOTHING)
    token = prices.outputs(longest, longest, 1, NOTHING)
    harmonic = sum(1 / k for k in range(1, shape.slots + 1))
    outputs = min(shape.pool_tokens * harmonic, shape.slots * longest) + shape.slots  # and one step in flight
    outputs *= 1 + shape.drafts
    started = prompt if shape.one_prefill else prompt * math.ceil(shape.pool_tokens / longest)
    bound = prompt + started + token * outputs
    if counters.lengths is not None:
        bound += token * outputs  # expected of the client that is behind, and not generated yet
    if config.preset == "hybrid":
        bound += prompt  # others may pass a head that does not fit
    return (bound + config.fairness.quantum) / counters.least_weight + shape.allowed_gap
