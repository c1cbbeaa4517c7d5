"""Growth: who gets the blocks that running requests need in a step, and who gives way where they are short.

Left alone, vLLM settles this in the middle of a step: it preempts the last of the running, whoever that is. Here it is
settled before the step, so that offline work keeps its rest (`preempt_interval_s`) and nothing is computed twice that
could have waited. Online requests come first; offline requests that had their rest give up their memory for them,
those with least to lose first; where all of them must rest, the youngest online request waits for a block. Offline
requests take blocks only beyond one for each running online request; who finds none pauses at the end of its block,
loses nothing, and goes on when somebody has finished. Only where nobody could run does one lose its memory unrested.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.request import Lane, RequestView
from vllm_hybrid.policy.room import cheapest


class Growth:
    """Makes a plan's running requests fit the free blocks; to be used once per plan."""

    def __init__(self, view: StepView, plan: StepPlan, interval_s: float) -> None:
        self._view = view
        self._plan = plan
        self._rested_s = view.now_s - interval_s
        self._paused = set(plan.paused)

    def settle(self) -> None:
        """Pause and preempt until every request left in the step finds its blocks."""
        if self._enough_for_all():
            return
        running = [v for v in self._plan.order if v not in self._paused]
        online = [v for v in running if v.key[0] is Lane.ONLINE]
        offline = [v for v in running if v.key[0] is Lane.OFFLINE]
        free = self._view.growth_blocks_free + self._reclaimed(self._plan.preempt) + self._reclaimed(self._plan.drop)
        free = self._grow_online(online, free)
        free = self._grow(offline, free, keep=self._online_count())
        order = self._plan.order
        if order and all(v in self._paused for v in order) and not self._plan.unpark:
            self._give_way(free)
        self._reorder()

    def _enough_for_all(self) -> bool:
        """Whether even the worst case fits, told without looking at anybody: the common case."""
        view, plan = self._view, self._plan
        per_decode = 1 + view.decode_tokens // view.block_tokens
        most = (per_decode + 1) * len(plan.order) + plan.token_budget // view.block_tokens
        return most <= view.growth_blocks_free

    def _needed(self, request: RequestView) -> int:
        tokens = self._view.decode_tokens
        if request.prefilling:
            limit = self._view.max_chunk_tokens
            tokens = min(request.missing_tokens, self._plan.caps.get(request.request_id, limit), limit)
        return self._view.growth_blocks(request, tokens)

    def _reclaimed(self, victims: Iterable[RequestView]) -> int:
        return sum(map(self._view.reclaimable_blocks, victims))

    def _online_count(self) -> int:
        return sum(v.key[0] is Lane.ONLINE for v in self._plan.order)

    def _grow_online(self, online: Sequence[RequestView], free: int) -> int:
        """Blocks left after online growth; victims are taken for it, and who still finds none pauses."""
        missing = sum(map(self._needed, online)) - free
        if missing > 0:
            free += self._take_from_offline(missing)
        return self._grow(online, free, keep=0)

    def _take_from_offline(self, missing: int) -> int:
        """Preempt rested offline requests for `missing` blocks; the blocks that come free."""
        plan, taken = self._plan, 0
        parked = [v for v in self._view.parked if v not in plan.drop and v not in plan.unpark]
        running = [v for v in plan.order if v.key[0] is Lane.OFFLINE]
        for pool, victims in ((parked, plan.drop), (running, plan.preempt)):
            pool.sort(key=lambda v: -v.computed_tokens)
            found, missing = cheapest(self._view, pool, missing, self._rested_s)
            taken += self._reclaimed(found)
            victims += found
        gone = set(plan.preempt)
        plan.order = [v for v in plan.order if v not in gone]
        plan.paused = [v for v in plan.paused if v not in gone]
        return taken

    def _grow(self, requests: Sequence[RequestView], free: int, keep: int) -> int:
        """Give blocks in order, as long as `keep` stay free; who finds none pauses. Returns the blocks left."""
        gone = set(self._plan.preempt)
        for request in requests:
            if request in gone:
                continue
            needed = self._needed(request)
            if needed > free - keep > 0 and request.prefilling:
                self._plan.caps[request.request_id] = (free - keep) * self._view.block_tokens  # a shorter chunk
                needed = self._needed(request)
            if needed and needed > free - keep:
                self._pause(request)
            else:
                free -= needed
        return free

    def _pause(self, request: RequestView) -> None:
        self._paused.add(request)
        self._plan.paused.append(request)

    def _give_way(self, free: int) -> None:
        """Nobody could run: one loses its memory (more, if that frees too little), so that the others can."""
        plan = self._plan
        while not self._wake(free):
            victim = self._victim()
            if victim is None:  # one alone that does not fit: that is the engine's business
                self._wake(math.inf)
                return
            free += self._view.reclaimable_blocks(victim)
            if victim in plan.order:
                plan.preempt.append(victim)
                plan.order = [v for v in plan.order if v is not victim]
                plan.paused = [v for v in plan.paused if v is not victim]
            else:
                plan.drop.append(victim)

    def _victim(self) -> RequestView | None:
        """A rested offline request with least to lose; else the one disturbed longest ago; else the latest online."""
        plan = self._plan
        parked = [v for v in self._view.parked if v not in plan.drop and v not in plan.unpark]
        running = plan.order if len(plan.order) > 1 else []
        victims = [v for v in (*parked, *running) if self._view.reclaimable_blocks(v)]
        offline = [v for v in victims if v.key[0] is Lane.OFFLINE]
        rested = [v for v in offline if v.disturbed_s <= self._rested_s]
        if rested:
            return min(rested, key=lambda v: v.computed_tokens)
        if offline:
            return min(offline, key=lambda v: v.disturbed_s)
        return victims[-1] if victims else None

    def _wake(self, free: float) -> bool:
        """Let those run for whom `free` blocks suffice, in order; whether there are any."""
        woken = False
        for request in self._plan.order:
            needed = self._needed(request)
            if needed <= free:
                free -= needed
                self._plan.paused.remove(request)
                self._paused.discard(request)
                woken = True
        return woken

    def _reorder(self) -> None:
        """Paused offline requests stand last; those disturbed lately before the others."""
        order = self._plan.order
        paused = [v for v in order if v in self._paused and v.key[0] is Lane.OFFLINE]
        paused.sort(key=lambda v: -v.disturbed_s)
        last = set(paused)
        self._plan.order = [v for v in order if v not in last] + paused
