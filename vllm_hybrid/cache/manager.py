"""vLLM's block manager for requests of both forms: the halves of a request are blocks to vLLM like any others.

A half block carries its pool, and vLLM's own pool hands blocks that are not its own to theirs, wherever they are freed.
What is asked of vLLM's pool is always counted in physical blocks, so its admission stays right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from vllm_hybrid.cache.half_blocks import HalfBlocks

PRESSURE_ENDS_AT = 0.7
"""Of the memory, beside 1 where the pressure begins: forms do not flicker."""


class Move(NamedTuple):
    """A request gets KV: what the worker needs to know."""

    request_id: str
    half_ids: list[int]
    block_ids: list[int]
    tokens: int
    """That its cache holds."""


class HalfRow(NamedTuple):
    """What a step does with a request of the half form: for workers that plan it without asking their device."""

    query: int
    """Tokens of this step."""

    context: int
    """Tokens in the cache when they are done."""


class HalfBlockManager(FullAttentionManager):
    def __init__(self, kv_cache_spec: Any, block_pool: BlockPool, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, block_pool, **kwargs)
        self.half_blocks = HalfBlocks(block_pool, kv_cache_spec.halves)
        self.half_requests: set[str] = set()
        """Requests of the half form. It may change only while a request has no blocks."""

        self.pressure = False
        """Everything in KV would not fit into the memory."""

        self.cost = kv_cache_spec.cost
        """What answers `half_extra_s(rows, context_tokens)`, as the workers measured it; None: not known."""

        self.moves = 0
        """Requests that were moved to KV so far."""

        self.asked_by: str | None = None
        """For whom vLLM looks into the prefix cache right now."""

        self._awaited: dict[str, int] = {}
        self.awaited_blocks = 0
        """Blocks, all in KV, that live requests without any want."""

        # vLLM asks the class which prefix is cached, but through the instance: this one knows whose question it is.
        self.find_longest_cache_hit = self._find_longest_cache_hit

    # -- forms ---------------------------------------------------------------------------------------------------------
    def choose_form(self, request_id: str, half: bool) -> None:
        """What the blocks of a request will be, from its first one on."""
        assert not self.req_to_blocks.get(request_id), f"{request_id} has blocks already"
        (self.half_requests.add if half else self.half_requests.discard)(request_id)

    def has_blocks(self, request_id: str) -> bool:
        """Whether a request's form stands."""
        return bool(self.req_to_blocks.get(request_id))

    def halves_of(self, request_id: str) -> int:
        """Blocks of the request that fit into one."""
        return self.half_blocks.ids.ratio if request_id in self.half_requests else 1

    def expect(self, request_id: str, tokens: int) -> None:
        """A request arrived, or lost its blocks: it wants room for so many tokens."""
        blocks = cdiv(tokens, self.block_size)
        self.awaited_blocks += blocks - self._awaited.get(request_id, 0)
        self._awaited[request_id] = blocks

    def _got_blocks(self, request_id: str) -> None:
        self.awaited_blocks -= self._awaited.pop(request_id, 0)

    def forget(self, request_id: str) -> None:
        """The request is over."""
        self._got_blocks(request_id)
        self.half_requests.discard(request_id)

    def feel_pressure(self) -> None:
        """Look at the memory anew. Never within a step: a plan and vLLM's loop see the same."""
        room = self.block_pool.num_gpu_blocks - 1
        self.pressure = self.demand_blocks > room * (PRESSURE_ENDS_AT if self.pressure else 1.0)

    @property
    def halves_of_next(self) -> int:
        """Blocks that fit into one, of a request that is admitted now."""
        return self.half_blocks.ids.ratio if self.pressure else 1

    @property
    def demand_blocks(self) -> int:
        """What everything here and everything that waits would hold in KV."""
        pool, halves = self.block_pool, self.half_blocks.ids
        whole = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks() - halves.split_blocks
        return whole + halves.used_halves + self.awaited_blocks

    def half_extra_s(self, rows: int, context_tokens: int) -> float:
        """Seconds that decodes over so many tokens of context take more per step in the half form; 0 if unknown."""
        return 0.0 if self.cost is None else self.cost.half_extra_s(rows, context_tokens)

    def reclaimable_blocks(self, request_id: str) -> int:
        """Whole blocks that come free with the half blocks of a request."""
        return self.half_blocks.ids.merged_by_freeing(
            block.block_id for block in self.req_to_blocks.get(request_id, ()) if block.ref_cnt == 1
        )

    def move_to_kv(self, request_id: str, tokens: int) -> Move | None:
        """Give a request whole blocks in the place of its half blocks; None if there are not so many.

        The old ones are freed at once: workers carry the move out before the step, and whatever gets their memory
        writes in the step.
        """
        old = self.req_to_blocks[request_id]
        if len(old) > self.block_pool.get_num_free_blocks():
            return None
        new = self.block_pool.get_new_blocks(len(old))
        self.req_to_blocks[request_id] = new
        self.half_requests.discard(request_id)
        self.num_cached_block[request_id] = 0  # none of the new ones can be found by prefix yet
        self.half_blocks.free_blocks(reversed(old))
        self.moves += 1
        return Move(request_id, [block.block_id for block in old], [block.block_id for block in new], tokens)

    # -- what vLLM asks ------------------------------------------------------------------------------------------------
    def _missing_blocks(self, request_id: str, tokens: int, found: int = 0) -> int:
        return max(0, cdiv(tokens, self.block_size) - len(self.req_to_blocks.get(request_id, ())) - found)

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[KVCacheBlock], *args: Any, **kwargs: Any
    ) -> int:
        if request_id not in self.half_requests:
            return super().get_num_blocks_to_allocate(request_id, num_tokens, new_computed_blocks, *args, **kwargs)
        missing = self._missing_blocks(request_id, num_tokens, len(new_computed_blocks))
        return self.half_blocks.whole_blocks_needed(new_computed_blocks, missing)

    def add_local_computed_blocks(
        self, request_id: str, new_computed_blocks: Sequence[KVCacheBlock], *args: Any, **kwargs: Any
    ) -> None:
        if request_id not in self.half_requests:
            super().add_local_computed_blocks(request_id, new_computed_blocks, *args, **kwargs)
        else:
            self.req_to_blocks[request_id].extend(self.half_blocks.touch(new_computed_blocks))
            self.num_cached_block[request_id] = len(new_computed_blocks)

    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[KVCacheBlock]:
        self._got_blocks(request_id)
        if request_id not in self.half_requests:
            return super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
        missing = self._missing_blocks(request_id, num_tokens)
        new = self.half_blocks.get_new_blocks(missing) if missing else []
        self.req_to_blocks[request_id].extend(new)
        return new

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        request_id = request.request_id
        if request_id not in self.half_requests:
            super().cache_blocks(request, num_tokens, *args, **kwargs)
            return
        done, full = self.num_cached_block.get(request_id, 0), num_tokens // self.block_size
        if full > done:
            blocks = self.req_to_blocks[request_id][done:full]
            self.half_blocks.remember(blocks, self._hashes(request.block_hashes)[done:full])
            self.num_cached_block[request_id] = full

    def _find_longest_cache_hit(
        self, block_hashes: Any, max_length: int, *args: Any, **kwargs: Any
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        if self.asked_by not in self.half_requests:
            return FullAttentionManager.find_longest_cache_hit(block_hashes, max_length, *args, **kwargs)
        found = self.half_blocks.find(itertools.islice(self._hashes(block_hashes), max_length // self.block_size))
        return (found,), len(found) * self.block_size

    def _hashes(self, block_hashes: Any) -> Any:
        return resolve_block_hashes(block_hashes, self.block_pool.hash_block_size, self.block_size)

    def forget_uncomputed(self, request_id: str, computed_tokens: int) -> None:
        """Half blocks of a step that is being undone will never hold what their hashes say."""
        if request_id in self.half_requests:
            for block in self.req_to_blocks.get(request_id, ())[computed_tokens // self.block_size :]:
                self.half_blocks.forget(block.block_id)

    def integrity(self) -> None:
        """Raise an AssertionError if a request's blocks are not of its form, or the pool's books disagree."""
        self.half_blocks.integrity()
        halves: dict[int, int] = {}
        for request_id, blocks in self.req_to_blocks.items():
            half = request_id in self.half_requests
            assert all(self.half_blocks.ids.is_half(block.block_id) == half for block in blocks), request_id
            for block in blocks if half else ():
                halves[block.block_id] = block.ref_cnt
        assert len(halves) == self.half_blocks.used, "half blocks in use that no request has"
