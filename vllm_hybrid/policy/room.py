"""Making room: which offline requests give way to online requests that wait.

An online request at the head of the line needs a slot and blocks. If only slots are short, an offline request is
parked: it keeps its blocks and loses nothing. If blocks are short, parked requests are dropped and running ones
preempted, those with the fewest tokens to lose first. Nobody is disturbed for a head that cannot be admitted anyway,
and nobody loses its memory twice within `preempt_interval_s`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    more: bool = False  # online requests that could run wait behind those placed


def cheapest(
    view: StepView, victims: Sequence[RequestView], missing: int, rested_s: float
) -> tuple[list[RequestView], int]:
    """The cheapest of `victims` whose blocks cover `missing`, and what is missing still (negative: left over).

    victims: the most computed tokens first. rested_s: who was disturbed after this time is left alone.
    """
    taken: list[tuple[int, RequestView]] = []
    for victim in reversed(victims):
        if missing <= 0:
            break
        blocks = view.reclaimable_blocks(victim) if victim.disturbed_s <= rested_s else 0
        if blocks:
            taken.append((blocks, victim))
            missing -= blocks
    # The last one may have freed so much that an earlier one need not have moved.
    for blocks, victim in sorted(taken, key=lambda pair: -pair[1].computed_tokens):
        if blocks <= -missing:
            taken.remove((blocks, victim))
            missing += blocks
    return [victim for _, victim in taken], missing


class RoomMaker:
    """Places online heads one by one, taking from offline work what each one lacks."""

    def __init__(self, view: StepView, running: Iterable[RequestView], interval_s: float) -> None:
        self._view = view
        self._rested_s = view.now_s - interval_s
        # Both are taken from at the end: the fewest computed tokens are the cheapest to compute again.
        self._running = sorted(running, key=lambda v: -v.computed_tokens)
        self._parked = sorted(view.parked, key=lambda v: -v.computed_tokens)
        self.room = Room(slots=view.free_slots, blocks=view.free_blocks)

    def place(self, heads: Iterable[RequestView], reserve_blocks: int) -> Room:
        """Find room for `heads` in order and keep `reserve_blocks` free; stops at the first that cannot be placed."""
        room = self.room
        for head in heads:
            if not self._place(self._view.blocks_needed(head), reserve_blocks):
                room.stuck = True
                break
            room.placed += 1
        return room

    def _place(self, needed: int, reserve_blocks: int) -> bool:
        room = self.room
        missing = needed + reserve_blocks - room.blocks
        drop, missing = cheapest(self._view, self._parked, missing, self._rested_s)
        preempt, missing = cheapest(self._view, self._running, missing, self._rested_s)
        slots = room.slots + len(preempt)
        park = self._parkable(preempt) if slots < 1 else None
        if missing > 0 or (slots < 1 and park is None):
            return False
        gone = {*drop, *preempt, *((park,) if park else ())}
        self._parked = [v for v in self._parked if v not in gone]
        self._running = [v for v in self._running if v not in gone]
        room.drop += drop
        room.preempt += preempt
        room.park += [park] if park else []
        room.slots = slots - 1 + (park is not None)
        room.blocks = reserve_blocks - missing
        return True

    def _parkable(self, preempt: list[RequestView]) -> RequestView | None:
        """The request to give its slot; one whose blocks must not move keeps its slot too."""
        for victim in reversed(self._running):
            if victim not in preempt and self._view.reclaimable_blocks(victim):
                return victim
        return None
