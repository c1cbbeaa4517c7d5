"""Half blocks as vLLM's block objects, shared and found again by prefix like vLLM's own.

What a half block holds stays readable after its last user is gone, until the half is given out anew or its whole
block is. Hashes are vLLM's own, chained from the first block and salted, but kept in a map of their own: a request of
the half form never finds KV, nor one of KV a half block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHash, KVCacheBlock

from vllm_hybrid.cache.pool import HalfBlockPool


class _WholeBlocks:
    """vLLM's pool as the pool of half blocks wants it."""

    def __init__(self, pool: BlockPool, half_blocks: HalfBlocks) -> None:
        self._pool, self._half_blocks = pool, half_blocks
        self._taken: dict[int, KVCacheBlock] = {}

    def free_count(self) -> int:
        return self._pool.get_num_free_blocks()

    def take(self, count: int) -> list[int]:
        taken = {block.block_id: block for block in self._pool.get_new_blocks(count)}
        self._taken |= taken
        return list(taken)

    def give_back(self, ids: list[int]) -> None:
        """Blocks with something to read join the tail of vLLM's queue, like cached ones; the others its head."""
        blocks = [self._taken.pop(block_id) for block_id in ids]
        readable = [block for block in blocks if self._half_blocks.is_readable(block.block_id)]
        self._pool.unpin_blocks(readable, self._half_blocks.forget_whole)
        self._pool.free_blocks([block for block in blocks if not self._half_blocks.is_readable(block.block_id)])

    def claim(self, block_id: int) -> None:
        block = self._pool.blocks[block_id]
        self._pool.touch([block])
        self._taken[block_id] = block


class HalfBlocks:
    def __init__(self, pool: BlockPool, halves: int) -> None:
        self.ids = HalfBlockPool(pool.num_gpu_blocks, halves, _WholeBlocks(pool, self))
        self._used: dict[int, KVCacheBlock] = {}
        self._by_hash: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}

    @property
    def used(self) -> int:
        """Half blocks that requests hold, shared ones once."""
        return len(self._used)

    def get_new_blocks(self, count: int) -> list[KVCacheBlock]:
        new = [KVCacheBlock(block_id, ref_cnt=1, pool=self) for block_id in self.ids.allocate(count)]
        for block in new:
            self.forget(block.block_id)
            self._used[block.block_id] = block
        return new

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """Called by vLLM's pool for the blocks that are ours."""
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                freed.append(block.block_id)
                del self._used[block.block_id]
        self.ids.free(freed)

    # -- found again by prefix -----------------------------------------------------------------------------------------
    def remember(self, blocks: Sequence[KVCacheBlock], hashes: Sequence[BlockHash]) -> None:
        """The blocks are full, and hold what the hashes say. The first that holds something is the one found."""
        for block, block_hash in zip(blocks, hashes, strict=True):
            if block_hash not in self._by_hash:
                self.forget(block.block_id)
                self._by_hash[block_hash] = block.block_id
                self._hash_of[block.block_id] = block_hash

    def find(self, hashes: Iterable[BlockHash]) -> list[KVCacheBlock]:
        """The longest run of remembered blocks from the start; those without a user are not taken yet."""
        found = []
        for block_hash in hashes:
            block_id = self._by_hash.get(block_hash)
            if block_id is None:
                break
            found.append(self._used.get(block_id) or KVCacheBlock(block_id, pool=self))
        return found

    def touch(self, blocks: Sequence[KVCacheBlock]) -> list[KVCacheBlock]:
        """One more user of each of these found blocks; the blocks as everybody has them."""
        return [self._touched(block.block_id) for block in blocks]

    def _touched(self, block_id: int) -> KVCacheBlock:
        block = self._used.get(block_id)
        if block is None:
            self.ids.claim(block_id)
            block = self._used[block_id] = KVCacheBlock(block_id, pool=self)
        block.ref_cnt += 1
        return block

    def whole_blocks_needed(self, found: Sequence[KVCacheBlock], more: int) -> int:
        """Whole blocks that `touch(found)` and `more` new half blocks take together."""
        unused = [block.block_id for block in found if block.block_id not in self._used]
        if not unused:
            return self.ids.whole_blocks_needed(more)
        merged = {block for block in map(self.ids.physical, unused) if not self.ids.is_split(block)}
        holes = self.ids.holes + len(merged) * self.ids.ratio - len(unused)
        return len(merged) + max(0, -(-(more - holes) // self.ids.ratio))

    def forget(self, block_id: int) -> None:
        """The half block will not be found any more."""
        if (block_hash := self._hash_of.pop(block_id, None)) is not None:
            del self._by_hash[block_hash]

    def forget_whole(self, block: KVCacheBlock) -> None:
        """vLLM gave a whole block out anew, or reset its prefix cache."""
        first = self.ids.num_blocks + self.ids.ratio * block.block_id
        for block_id in range(first, first + self.ids.ratio):
            if block_id not in self._used:
                self.forget(block_id)

    def is_readable(self, block: int) -> bool:
        """Whether any half of a physical block could be found."""
        first = self.ids.num_blocks + self.ids.ratio * block
        return any(block_id in self._hash_of for block_id in range(first, first + self.ids.ratio))

    def integrity(self) -> None:
        """Raise an AssertionError if the books disagree."""
        self.ids.integrity()
        assert len(self._used) == self.ids.used_halves, "half blocks in use that nobody has"
        assert all(block.ref_cnt > 0 for block in self._used.values())
        assert {h: b for b, h in self._hash_of.items()} == self._by_hash, "a hash leads to another block"
