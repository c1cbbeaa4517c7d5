"""Half blocks out of whole ones: split a block when no hole is left, give it back when its last half is freed.

Half block `N + R*p + j` is part j of physical block p. The rule is *holes first*: free halves of blocks that are
already split are used up before another is split, those of the fullest blocks first, so that emptier ones get the
chance to become whole. Hence a demand of k halves takes exactly max(0, ceil((k - holes) / R)) whole blocks, which is
what admission may count on. Whole blocks belong to somebody else (vLLM's block pool); its null block 0 is never given
out, so ids N..N+R-1 never are either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class WholeBlocks(Protocol):
    """The pool of physical blocks that both forms share."""

    def free_count(self) -> int: ...

    def take(self, count: int) -> list[int]:
        """Ids of `count` blocks that nobody else has; only asked for if so many are free."""

    def give_back(self, ids: list[int]) -> None: ...

    def claim(self, block_id: int) -> None:
        """Take this block, which is free."""


class HalfBlockPool:
    def __init__(self, num_blocks: int, ratio: int, whole: WholeBlocks) -> None:
        if ratio < 2:
            raise ValueError(f"{ratio} half blocks per block: a form that saves nothing needs no pool")
        self.num_blocks, self.ratio = num_blocks, ratio
        self.holes = 0
        """Free halves of split blocks."""
        self._whole = whole
        self._full = (1 << ratio) - 1
        self._free: dict[int, int] = {}
        """Split block -> bit j is set where half j is free."""
        self._partial: list[dict[int, None]] = [{} for _ in range(ratio)]
        """Split blocks by the number of their free halves; those without any are in none."""

    @property
    def split_blocks(self) -> int:
        return len(self._free)

    @property
    def used_halves(self) -> int:
        return self.split_blocks * self.ratio - self.holes

    def is_half(self, block_id: int) -> bool:
        return block_id >= self.num_blocks

    def physical(self, block_id: int) -> int:
        """The block that holds a half block."""
        return (block_id - self.num_blocks) // self.ratio

    def whole_blocks_needed(self, halves: int) -> int:
        """Physical blocks that `allocate(halves)` takes."""
        return max(0, -(-(halves - self.holes) // self.ratio))

    def allocate(self, halves: int) -> list[int]:
        """Ids of `halves` half blocks. The caller has seen to it that `whole_blocks_needed` are free."""
        needed = self.whole_blocks_needed(halves)
        if needed > self._whole.free_count():
            raise ValueError(f"{halves} half blocks need {needed} blocks, {self._whole.free_count()} are free")
        ids: list[int] = []
        for level in range(1, self.ratio):
            while len(ids) < halves and self._partial[level]:
                block = next(iter(self._partial[level]))
                ids += self._take_from(block, halves - len(ids))
        for block in self._whole.take(needed) if needed else ():
            assert block > 0 and block not in self._free, f"block {block} was given out twice"
            self._free[block] = self._full
            self.holes += self.ratio
            ids += self._take_from(block, halves - len(ids))
        return ids

    def claim(self, block_id: int) -> None:
        """Take this half block, which is free: in a split block, or in a whole one that nobody has."""
        block, part = divmod(block_id - self.num_blocks, self.ratio)
        if block not in self._free:
            self._whole.claim(block)
            self._free[block] = self._full
            self.holes += self.ratio
        before = self._free[block]
        assert before >> part & 1, f"half block {block_id} is in use"
        self._move(block, before, before & ~(1 << part))

    def is_split(self, block: int) -> bool:
        """Whether a physical block is split now."""
        return block in self._free

    def merged_by_freeing(self, ids: Iterable[int]) -> int:
        """Blocks that would become whole if these half blocks were freed."""
        freed: dict[int, int] = {}
        for block_id in ids:
            block, part = divmod(block_id - self.num_blocks, self.ratio)
            freed[block] = freed.get(block, 0) | 1 << part
        return sum(self._free[block] | parts == self._full for block, parts in freed.items())

    def free(self, ids: Iterable[int]) -> None:
        """Take half blocks back; blocks that are whole again go back to their pool."""
        merged = []
        for block_id in ids:
            block, part = divmod(block_id - self.num_blocks, self.ratio)
            before = self._free.get(block)
            assert before is not None and not before >> part & 1, f"half block {block_id} is not in use"
            self._move(block, before, before | 1 << part)
            if self._free[block] == self._full:
                del self._free[block]
                self.holes -= self.ratio
                merged.append(block)
        if merged:
            self._whole.give_back(merged)

    def _take_from(self, block: int, most: int) -> list[int]:
        """Up to `most` free halves of a split block, in the order in which they lie."""
        before = after = self._free[block]
        ids: list[int] = []
        for part in range(self.ratio):
            if len(ids) < most and before >> part & 1:
                after &= ~(1 << part)
                ids.append(self.num_blocks + self.ratio * block + part)
        self._move(block, before, after)
        return ids

    def _move(self, block: int, before: int, after: int) -> None:
        """Note which halves of a block are free now."""
        was, now = before.bit_count(), after.bit_count()
        if 0 < was < self.ratio:
            del self._partial[was][block]
        if 0 < now < self.ratio:
            self._partial[now][block] = None
        self._free[block] = after
        self.holes += now - was

    def integrity(self) -> None:
        """Raise an AssertionError if the books disagree. O(split blocks); for tests and for an idle engine."""
        free = {block: mask.bit_count() for block, mask in self._free.items()}
        assert self.holes == sum(free.values()), f"{self.holes} holes noted, {sum(free.values())} there"
        assert all(count < self.ratio for count in free.values()), "a block without any half in use was not given back"
        assert 0 not in free, "the null block was split"
        listed = {block: level for level, blocks in enumerate(self._partial) for block in blocks}
        assert listed == {block: count for block, count in free.items() if count}, "a hole is listed wrongly"
