"""Exchange: a running request gives its memory to waiting ones to which it is worth more.

A burst fills the pool with those who came first, and for as long as their answers last nobody else is in time. What a
request makes of memory is its chance to end within t steps per token of memory and step that it holds until then, for
the best t (the Gittins index of a job whose length is not known); `survival.py` knows the chances. A small request
that has just come is often worth more than one that has generated for long and goes on. So a waiting online request
that can still be in time, but not for much longer, and does not fit, takes the memory of running ones that are worth
less by a factor `_TIMES`.

What that costs is counted: the one that steps back has missed its target between tokens, from then on it is worth
nothing here, gives way first, and is late for whoever asks. It comes back when there is spare room, and before anything
new once it has waited `_LONGEST_GAPS` times its target. A target of few steps (`LEAST_STEPS`) promises a steady flow:
then nobody steps back. Nor does anybody for a client that was served more than his by the gap that lateness allows.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vllm_hybrid.policy.expected import GRID, ExpectedGate
from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.survival import Survival

LEAST_STEPS = 16.0  # of a target between tokens under which nobody steps back
_TIMES = 2.5  # worth more: the way back must be computed again, and chances are estimates
_LONGEST_GAPS = 30.0  # times the target between tokens
_PRESSING = 0.6  # of the target for the first token: who has waited less may still find room
_HEADS = 16  # of the waiting requests looked at in a step


def worth(survival: Survival, views: Sequence[RequestView]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each request: its chance to end within t steps per token of memory and step until then, for the best t."""
    goes_on = survival.goes_on(views, GRID).astype(float)
    held = np.array([v.computed_tokens + (0 if _decodes(v) else v.missing_tokens) for v in views], float)
    tokens = (held[:, None] + GRID) * goes_on
    used = np.cumsum((tokens[:, 1:] + tokens[:, :-1]) / 2 * np.diff(GRID), axis=1)
    return np.asarray(((1.0 - goes_on[:, 1:]) / np.maximum(used, 1.0)).max(axis=1))


def _decodes(view: RequestView) -> bool:
    return view.computed_tokens > 0 and not view.prefilling


class Exchange:
    """Decides who steps back before a step. tbt_s: the target between tokens of online requests."""

    def __init__(self, survival: Survival, tbt_s: float) -> None:
        self._survival = survival
        self._tbt_s = tbt_s

    def settle(self, view: StepView, gate: Callable[[], ExpectedGate]) -> list[RequestView]:
        """Those who step back, marked as such; the step's gate, made when it is needed, knows of them afterwards.

        None where offline work runs: that gives way first.
        """
        heads = self._heads(view)
        if not heads or view.parked or any(v.key[0] is Lane.OFFLINE for v in view.running):
            return []
        victims = self._victims(view, heads, gate())
        for victim in victims:
            victim.late = True
            victim.stands_back_s = victim.last_token_s + _LONGEST_GAPS * self._tbt_s
            gate().release(victim)
        return victims

    def _victims(self, view: StepView, heads: Sequence[RequestView], gate: ExpectedGate) -> list[RequestView]:
        ranked, value = self._ranked(view)
        free_blocks = view.free_blocks - len(view.running)  # as every admission leaves them
        tokens, slots = view.max_tokens, view.free_slots
        gone: list[RequestView] = []
        for head, gain in zip(heads, worth(self._survival, heads)):
            needed = view.blocks_needed(head)
            tokens -= head.missing_tokens
            if tokens < 0:  # its prompt is not begun in this step
                break
            trial, taken = gate.copy(), 0
            while not (trial.fits(head) and needed <= free_blocks and slots > 0):
                if taken == len(ranked) or not self._gives_way(view, ranked[taken], value, head, gain):
                    return gone
                trial.release(ranked[taken])
                free_blocks += view.reclaimable_blocks(ranked[taken]) + 1
                slots += 1
                taken += 1
            trial.admit(head)
            gate, free_blocks, slots = trial, free_blocks - needed - 1, slots - 1
            gone += ranked[:taken]
            ranked = ranked[taken:]
        return gone

    def _ranked(self, view: StepView) -> tuple[list[RequestView], Mapping[RequestView, float]]:
        """Who could step back, the one with least to lose first; what each is worth."""
        decodes = [v for v in view.running if _decodes(v) and v.dated_tokens and view.reclaimable_blocks(v)]
        if not decodes:
            return [], {}
        value = {v: 0.0 if v.late else float(w) for v, w in zip(decodes, worth(self._survival, decodes))}
        return sorted(decodes, key=lambda v: (value[v], -v.computed_tokens)), value

    @staticmethod
    def _gives_way(
        view: StepView, victim: RequestView, value: Mapping[RequestView, float], head: RequestView, gain: float
    ) -> bool:
        ahead = view.waiting.counters.lead(head.key, victim.key, {})
        return value[victim] * _TIMES <= gain and ahead <= view.waiting.allowed_gap

    @staticmethod
    def _heads(view: StepView) -> list[RequestView]:
        """The next waiting requests, as long as they can be in time, but not for much longer."""
        ttft_s = math.inf if view.waiting.urgency is None else view.waiting.urgency.ttft_s
        with contextlib.closing(view.waiting.walk(Lane.ONLINE, {}, ())) as walk:
            in_time = itertools.takewhile(lambda v: not v.late, itertools.islice(walk, _HEADS))
            return [v for v in in_time if view.ready(v) and view.now_s - v.arrival_s >= _PRESSING * ttft_s]


def without(view: StepView, gone: Sequence[RequestView]) -> StepView:
    """The view as it will be when `gone` have given up their memory."""
    blocks = sum(map(view.reclaimable_blocks, gone))
    left = set(gone)
    return replace(
        view,
        running=[v for v in view.running if v not in left],
        free_blocks=view.free_blocks + blocks,
        growth_blocks_free=view.growth_blocks_free + blocks,
        free_slots=view.free_slots + len(left),
    )
