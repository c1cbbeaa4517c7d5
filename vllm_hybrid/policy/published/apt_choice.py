"""Apt-Serve's choice of requests, and of their forms (SIGMOD'25, arXiv 2504.07494): greedy by value per block.

A request in the half form takes half the blocks, but every step in which it decodes is longer for all who are served
or wait: rho seconds per block of its KV. So there its value is its pending time less U * rho * its blocks, U being how
many wait or run and are not late. Requests in KV, requests in the half form, and upgrades from it to KV are sorted by
value per block, and taken until one does not fit; that one alone, in KV, if it outweighs all before it. The value is at
least half the optimum's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from vllm_hybrid.policy.request import RequestView


@dataclass(slots=True)
class Entry:
    """A request that may be picked. value: its pending time; blocks: what it holds, in KV, once it ran."""

    view: RequestView
    value: float
    blocks: int
    tokens: int
    late: bool = False


def densest(
    entries: Sequence[Entry],
    room_blocks: int,
    room_tokens: float = math.inf,
    room_slots: float = math.inf,
    usable: Callable[[RequestView], bool] = lambda view: True,
) -> list[Entry]:
    """The greedy choice: by value per block until one does not fit; that one alone if it outweighs all before it.

    With memory as the only limit its value is at least half the optimum's (of the requests that fit alone).
    """
    fitting = [e for e in entries if e.blocks <= room_blocks]
    fitting.sort(key=lambda e: e.value / e.blocks, reverse=True)
    chosen: list[Entry] = []
    value = 0.0
    for entry in fitting:
        if len(chosen) >= room_slots or (chosen and entry.tokens > room_tokens):
            break
        if not usable(entry.view):
            continue
        if entry.blocks > room_blocks:
            return [entry] if entry.value > value else chosen
        chosen.append(entry)
        value += entry.value
        room_blocks -= entry.blocks
        room_tokens -= entry.tokens
    return chosen


class _Kind(IntEnum):
    UPGRADE = 0
    KV = 1
    HALF = 2


@dataclass(slots=True)
class _Offer:
    """Something that may be taken: a request in one form, or an upgrade of one that was."""

    kind: _Kind
    entry: Entry
    value: float
    blocks: int

    @property
    def order(self) -> tuple[float, _Kind]:
        """At the same value per block a request goes before upgrades."""
        return self.value / self.blocks, self.kind


def _offers(entry: Entry, halves: int, price_s: float) -> list[_Offer]:
    half_blocks = -(-entry.blocks // halves)
    if entry.late or half_blocks == entry.blocks or entry.value < 2 * price_s * entry.blocks:
        return [_Offer(_Kind.KV, entry, entry.value, entry.blocks)]
    cost = price_s * entry.blocks
    half = _Offer(_Kind.HALF, entry, entry.value - cost, half_blocks)
    upgrade = _Offer(_Kind.UPGRADE, entry, cost, entry.blocks - half_blocks)
    # Where the blocks do not halve evenly, the upgrade may be the denser one; it cannot come before its request.
    upgrade.value = min(upgrade.value, half.value / half.blocks * upgrade.blocks)
    return [half, upgrade]


def densest_in_forms(
    entries: Sequence[Entry],
    halves: int,
    price_s: float,
    room_blocks: int,
    room_tokens: float = math.inf,
    room_slots: float = math.inf,
    usable: Callable[[RequestView], bool] = lambda view: True,
) -> list[Entry]:
    """The greedy choice, and in `wants_half` of each request its form.

    halves: half blocks per block; price_s: U * rho, seconds per block in the half form, at least 0. A late request is
    offered in KV only. Upgrades need no room for tokens and no slot: where those end, blocks may still be left.
    """
    fitting = [e for e in entries if e.blocks <= room_blocks]
    offers = [offer for e in fitting for offer in _offers(e, halves, price_s)]
    offers.sort(key=lambda offer: offer.order, reverse=True)
    chosen: list[Entry] = []
    taken: set[int] = set()
    value, full = 0.0, False
    for offer in offers:
        entry = offer.entry
        if offer.kind is _Kind.UPGRADE:
            if id(entry) not in taken:
                continue
            if offer.blocks > room_blocks:
                break
            entry.view.wants_half = False
        else:
            full = full or len(chosen) >= room_slots or (bool(chosen) and entry.tokens > room_tokens)
            entry.view.wants_half = offer.kind is _Kind.HALF
            if full or not usable(entry.view):
                continue
            if offer.blocks > room_blocks:
                if entry.value <= value:
                    break
                entry.view.wants_half = False
                return [entry]
            chosen.append(entry)
            taken.add(id(entry))
            room_tokens -= entry.tokens
        value += offer.value
        room_blocks -= offer.blocks
    return chosen
