"""vLLM's block manager for requests of both forms: the halves of a request are blocks to vLLM like any others.

A half block carries its pool, and vLLM's own pool hands blocks that are not its own to theirs, wherever they are freed.
What is asked of vLLM's pool is always counted in physical blocks, so its admission stays right. Requests of the half
form neither read nor fill the prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from vllm_hybrid.cache.pool import HalfBlockPool


class _WholeBlocks:
    """vLLM's pool as the pool of half blocks wants it."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._taken: dict[int, KVCacheBlock] = {}

    def free_count(self) -> int:
        return self._pool.get_num_free_blocks()

    def take(self, count: int) -> list[int]:
        taken = {block.block_id: block for block in self._pool.get_new_blocks(count)}
        self._taken |= taken
        return list(taken)

    def give_back(self, ids: list[int]) -> None:
        self._pool.free_blocks([self._taken.pop(block_id) for block_id in ids])


class HalfBlocks:
    """Half blocks as vLLM's block objects."""

    def __init__(self, pool: BlockPool, halves: int) -> None:
        self.ids = HalfBlockPool(pool.num_gpu_blocks, halves, _WholeBlocks(pool))

    def get_new_blocks(self, count: int) -> list[KVCacheBlock]:
        return [KVCacheBlock(block_id, ref_cnt=1, pool=self) for block_id in self.ids.allocate(count)]

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """Called by vLLM's pool for the blocks that are ours."""
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                freed.append(block.block_id)
        self.ids.free(freed)


class HalfBlockManager(FullAttentionManager):
    def __init__(self, kv_cache_spec: Any, block_pool: BlockPool, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, block_pool, **kwargs)
        self.half_blocks = HalfBlocks(block_pool, kv_cache_spec.halves)
        self.half_requests: set[str] = set()
        """Requests of the half form. It may change only while a request has no blocks."""

    def choose_form(self, request_id: str, half: bool) -> None:
        """What the blocks of a request will be, from its first one on."""
        assert not self.req_to_blocks.get(request_id), f"{request_id} has blocks already"
        (self.half_requests.add if half else self.half_requests.discard)(request_id)

    def forget(self, request_id: str) -> None:
        """The request is over."""
        self.half_requests.discard(request_id)

    def _missing_blocks(self, request_id: str, tokens: int) -> int:
        return max(0, cdiv(tokens, self.block_size) - len(self.req_to_blocks.get(request_id, ())))

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[KVCacheBlock], *args: Any, **kwargs: Any
    ) -> int:
        if request_id not in self.half_requests:
            return super().get_num_blocks_to_allocate(request_id, num_tokens, new_computed_blocks, *args, **kwargs)
        assert not new_computed_blocks, "a request of the half form reads no prefix cache"
        return self.half_blocks.ids.whole_blocks_needed(self._missing_blocks(request_id, num_tokens))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        if request_id not in self.half_requests:
            return super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
        missing = self._missing_blocks(request_id, num_tokens)
        new = self.half_blocks.get_new_blocks(missing) if missing else []
        self.req_to_blocks[request_id].extend(new)
        return new

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        if request.request_id not in self.half_requests:
            super().cache_blocks(request, num_tokens, *args, **kwargs)

    def integrity(self) -> None:
        """Raise an AssertionError if a request's blocks are not of its form, or the pool's books disagree."""
        self.half_blocks.ids.integrity()
        halves = 0
        for request_id, blocks in self.req_to_blocks.items():
            half = request_id in self.half_requests
            assert all(self.half_blocks.ids.is_half(block.block_id) == half for block in blocks), request_id
            halves += len(blocks) if half else 0
        assert halves == self.half_blocks.ids.used_halves, "half blocks in use that no request has"
