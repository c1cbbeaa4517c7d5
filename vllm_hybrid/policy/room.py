"""Making room: which offline requests give way to online requests that wait.

An online request at the head of the line needs a slot and blocks. If only slots are short, an offline request is
parked: it keeps its blocks and loses nothing. If blocks are short, parked requests are dropped and running ones
preempted, those with the fewest tokens to lose first. Nobody is disturbed for a head that cannot be admitted anyway,
and nobody loses its memory twice within `preempt_interval_s`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_hybrid.policy.plan import StepView
from vllm_hybrid.policy.request import RequestView


@dataclass(slots=True)
class Room:
    """What offline work gives up in a step, and what is left after the online heads were placed."""

    preempt: list[RequestView] = field(default_factory=list)
    park: list[RequestView] = field(default_factory=list)
    drop: list[RequestView] = field(default_factory=list)
    slots: int = 0
    blocks: int = 0
    placed: int = 0  # online heads that will find room
    stuck: bool = False  # an online head stays out for want of room


class RoomMaker:
    """Places online heads one by one, taking from offline work what each one lacks."""

    def __init__(self, view: StepView, victims: Iterable[RequestView], interval_s: float) -> None:
        self._view = view
        oldest_s = view.now_s - interval_s
        self._running = [v for v in victims if v.preempted_s <= oldest_s]
        self._parked = [v for v in view.parked if v.preempted_s <= oldest_s]
        # Taken from the end: the fewest computed tokens are the cheapest to compute again.
        self._running.sort(key=lambda v: -v.computed_tokens)
        self._parked.sort(key=lambda v: -v.computed_tokens)
        self.room = Room(slots=view.free_slots, blocks=view.free_blocks)

    def place(self, heads: Iterable[RequestView], reserve_blocks: int) -> Room:
        """Find room for `heads` in their order, `reserve_blocks` left free; stops at the first that cannot be
        placed."""
        room = self.room
        for head in heads:
            if not self._place(self._view.blocks_needed(head), reserve_blocks):
                room.stuck = True
                break
            room.placed += 1
        return room

    def _place(self, needed: int, reserve_blocks: int) -> bool:
        room, view = self.room, self._view
        slots, blocks = room.slots, room.blocks - reserve_blocks
        running, parked = list(self._running), list(self._parked)
        preempt: list[RequestView] = []
        park: list[RequestView] = []
        drop: list[RequestView] = []
        if slots < 1 and blocks >= needed and running:
            park.append(running.pop())
            slots += 1
        while blocks < needed and parked:
            victim = parked.pop()
            freed = view.reclaimable_blocks(victim)
            if freed:
                drop.append(victim)
                blocks += freed
        while (blocks < needed or slots < 1) and running:
            victim = running.pop()
            freed = view.reclaimable_blocks(victim)
            if freed:
                preempt.append(victim)
                blocks += freed
                slots += 1
        if blocks < needed or slots < 1:
            return False
        self._running, self._parked = running, parked
        room.preempt += preempt
        room.park += park
        room.drop += drop
        room.slots, room.blocks = slots - 1, blocks + reserve_blocks - needed
        return True
