"""The order of one client's offline requests: those that share a prefix stand together, so that it is still cached.

The prompts form a tree by the hashes of their blocks; it is walked depth first, children in the order in which they
first came, from where the last pick was (HyGen's prefix-sharing maximisation, arXiv 2501.14808). Prompts that share
nothing therefore stand in order of arrival. A group that never ends would starve the others, so the oldest request is
next once `MOST_PASSED` later ones were picked while it was the oldest: a request with m older ones in its line is
picked after at most (m + 1) * (MOST_PASSED + 1) picks. The walk goes on from there.

Different from the paper: no separate tree by age and no ratio, but this bound; and the tree is looked at only at the
depths of `DEPTHS`, so a request costs a few numbers, and each operation O(log n).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from vllm_hybrid.policy.request import RequestView

DEPTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Blocks after which prefixes are compared."""

MOST_PASSED = 128
_PIECE = 512

_Key = tuple[int, ...]


def prefix_of(block_hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """What the order needs to know of a prompt. block_hashes: each covers everything before it."""
    return tuple(block_hashes[depth - 1] for depth in DEPTHS if depth <= len(block_hashes))


class PrefixLine:
    """One client's waiting requests; the interface of `lines.ArrivalLine`."""

    __slots__ = ("_by_id", "_cursor", "_keys", "_passed", "_seen", "_sorted", "_tick")

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, RequestView] = OrderedDict()  # the oldest first
        self._keys: dict[str, _Key] = {}
        self._seen: dict[bytes, list[int]] = {}  # prefix -> [when it came first, how many wait with it]
        self._sorted = _Sorted()
        self._tick = itertools.count()
        self._cursor: _Key = ()
        self._passed = 0  # picks since the oldest is the oldest

    def add(self, view: RequestView) -> None:
        tick = next(self._tick)
        key = (*(self._enter(prefix, tick) for prefix in view.prefix), tick)
        self._by_id[view.request_id] = view
        self._keys[view.request_id] = key
        self._sorted.add(key, view)

    def prepend(self, view: RequestView) -> None:
        """As the oldest; its place in the walk is its prefix's."""
        self.add(view)
        self._by_id.move_to_end(view.request_id, last=False)

    def _enter(self, prefix: bytes, tick: int) -> int:
        entry = self._seen.setdefault(prefix, [tick, 0])
        entry[1] += 1
        return entry[0]

    def discard(self, view: RequestView) -> bool:
        key = self._keys.get(view.request_id)
        if key is None:
            return False
        if view is self.head():
            self._cursor = key
            self._passed = 0 if view is self._oldest() else self._passed + 1
        elif view is self._oldest():
            self._passed = 0
        del self._keys[view.request_id], self._by_id[view.request_id]
        self._sorted.remove(key)
        for prefix in view.prefix:
            entry = self._seen[prefix]
            entry[1] -= 1
            if not entry[1]:
                del self._seen[prefix]
        return True

    def _oldest(self) -> RequestView:
        return next(iter(self._by_id.values()))

    def head(self) -> RequestView:
        return self._oldest() if self._passed >= MOST_PASSED else next(self._sorted.after(self._cursor))

    def first(self, count: int) -> list[RequestView]:
        return list(itertools.islice(self, count))

    def __contains__(self, view: RequestView) -> bool:
        return view.request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[RequestView]:
        """In the order of the picks, if nothing came in between and nobody grew too old."""
        if not self._by_id:
            return
        head = self.head()
        yield head
        yield from (view for view in self._sorted.after(self._keys[head.request_id]) if view is not head)


class _Sorted:
    """Keys in order, in pieces, so that no operation moves more than one piece."""

    __slots__ = ("_pieces", "_values")

    def __init__(self) -> None:
        self._pieces: list[list[_Key]] = [[]]  # none is empty, unless it is the only one
        self._values: dict[_Key, RequestView] = {}

    def add(self, key: _Key, view: RequestView) -> None:
        at = self._piece_of(key)
        piece = self._pieces[at]
        insort(piece, key)
        if len(piece) > 2 * _PIECE:
            self._pieces[at : at + 1] = [piece[:_PIECE], piece[_PIECE:]]
        self._values[key] = view

    def remove(self, key: _Key) -> None:
        at = self._piece_of(key)
        piece = self._pieces[at]
        del piece[bisect_right(piece, key) - 1], self._values[key]
        if not piece and len(self._pieces) > 1:
            del self._pieces[at]

    def _piece_of(self, key: _Key) -> int:
        return max(0, bisect_right(self._pieces, key, key=lambda piece: piece[0] if piece else ()) - 1)

    def after(self, key: _Key) -> Iterator[RequestView]:
        """Every value once: those behind `key`, then from the beginning. No changes while it is iterated."""
        at = self._piece_of(key)
        start = bisect_right(self._pieces[at], key)
        for piece in (self._pieces[at][start:], *self._pieces[at + 1 :], *self._pieces[:at], self._pieces[at][:start]):
            for one in piece:
                yield self._values[one]
