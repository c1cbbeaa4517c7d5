"""The manager on vLLM's own pool: requests of both forms with shared prefixes, 10^5 operations, every book checked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.kv_cache_interface import FullAttentionSpec

from vllm_hybrid.cache.manager import HalfBlockManager
from vllm_hybrid.cache.spec import with_half_blocks

OPERATIONS = 100_000
BS = 4
PREFIXES = 5
serial = itertools.count()


@dataclass
class Sequence:
    """What the manager reads of a request: its id and the hashes of its full blocks."""

    request_id: str
    prefix: int
    shared_blocks: int
    tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    shared_prefix_boundary: int = 0

    def grow(self, tokens: int) -> None:
        self.tokens += tokens
        for i in range(len(self.block_hashes), self.tokens // BS):
            own = b"" if i < self.shared_blocks else self.request_id.encode()
            self.block_hashes.append(b"%d/%d/%s" % (self.prefix, i, own))


class Engine:
    """The least that drives the manager as vLLM's scheduler does, and a memory that knows what lies in every block."""

    def __init__(self, num_blocks: int, halves: int) -> None:
        spec = with_half_blocks(
            FullAttentionSpec(block_size=BS, num_kv_heads=1, head_size=1, dtype=torch.float16), halves
        )
        self.pool = BlockPool(num_blocks, enable_caching=True, hash_block_size=BS)
        self.manager = HalfBlockManager(
            spec, self.pool, enable_caching=True, kv_cache_group_id=0, scheduler_block_size=BS
        )
        self.halves, self.num_blocks = halves, num_blocks
        self.live: list[Sequence] = []
        self.memory: dict[int, bytes] = {}
        self.operations = self.found = self.moved = 0

    def admit(self, sequence: Sequence, half: bool) -> bool:
        manager, request_id = self.manager, sequence.request_id
        manager.expect(request_id, sequence.tokens)
        manager.choose_form(request_id, half)
        manager.asked_by = request_id
        hits, length = manager.find_longest_cache_hit(
            block_hashes=sequence.block_hashes,
            max_length=sequence.tokens - 1,
            kv_cache_group_ids=[0],
            block_pool=self.pool,
            kv_cache_spec=manager.kv_cache_spec,
            drop_eagle_block=False,
            alignment_tokens=BS,
        )
        manager.asked_by = None
        for block, block_hash in zip(hits[0], sequence.block_hashes, strict=False):
            assert self.memory[block.block_id] == block_hash, "a block was found that holds something else"
        if not self._allocate(sequence, hits[0], length):
            manager.forget(request_id)
            return False
        self.found += length
        self.live.append(sequence)
        return True

    def _allocate(self, sequence: Sequence, hits: list, length: int) -> bool:
        manager, request_id = self.manager, sequence.request_id
        self.operations += 1
        needed = manager.get_num_blocks_to_allocate(request_id, sequence.tokens, hits, length, length, sequence.tokens)
        free = self.pool.get_num_free_blocks()
        if needed > free:
            return False
        if request_id not in manager.num_cached_block:
            manager.add_local_computed_blocks(request_id, hits, length, 0)
        manager.allocate_new_blocks(request_id, sequence.tokens, sequence.tokens)
        assert self.pool.get_num_free_blocks() == free - needed, "admission was told another number"
        manager.cache_blocks(sequence, sequence.tokens, replay_boundaries=())
        self._write(sequence, length // BS)
        return True

    def _write(self, sequence: Sequence, first: int) -> None:
        """Fill the blocks from `first` on; what lay in the same memory is lost."""
        blocks = self.manager.req_to_blocks[sequence.request_id]
        hashes = [*sequence.block_hashes, b""][: len(blocks)]
        for block, block_hash in list(zip(blocks, hashes, strict=False))[first:]:
            self._lose(block.block_id)
            self.memory[block.block_id] = block_hash

    def _lose(self, block_id: int) -> None:
        if block_id >= self.num_blocks:
            self.memory.pop((block_id - self.num_blocks) // self.halves, None)
        else:
            for j in range(self.halves):
                self.memory.pop(self.num_blocks + self.halves * block_id + j, None)

    def decode(self, sequence: Sequence, tokens: int) -> None:
        """Grow; whoever finds no room loses its memory."""
        full = sequence.tokens // BS
        sequence.grow(tokens)
        if not self._allocate_more(sequence, full):
            self.end(sequence)

    def _allocate_more(self, sequence: Sequence, full: int) -> bool:
        return self._allocate(sequence, [], full * BS)

    def move(self, sequence: Sequence) -> None:
        self.operations += 1
        manager = self.manager
        if sequence.request_id in manager.half_requests and manager.move_to_kv(sequence.request_id, sequence.tokens):
            self.moved += 1
            self._write(sequence, 0)

    def end(self, sequence: Sequence) -> None:
        self.operations += 1
        self.live.remove(sequence)
        self.manager.free(sequence.request_id)
        self.manager.forget(sequence.request_id)

    def check(self) -> None:
        """Nothing leaks, nothing has two owners of different forms, and live blocks hold what they should."""
        self.manager.integrity()
        ids = self.manager.half_blocks.ids
        whole, split = set(), set()
        for sequence in self.live:
            blocks = self.manager.req_to_blocks[sequence.request_id]
            half = sequence.request_id in self.manager.half_requests
            (split if half else whole).update(ids.physical(b.block_id) if half else b.block_id for b in blocks)
            for block, block_hash in zip(blocks, sequence.block_hashes, strict=False):
                assert self.memory[block.block_id] == block_hash
        assert not whole & split and len(split) == ids.split_blocks
        assert len(whole) + len(split) + self.pool.get_num_free_blocks() == self.num_blocks - 1


class Machine(RuleBasedStateMachine):
    operations = found = moved = 0

    @initialize(num_blocks=st.integers(6, 80), halves=st.integers(2, 4))
    def start(self, num_blocks: int, halves: int) -> None:
        self.engine = Engine(num_blocks, halves)

    def pick(self, choice: int) -> Sequence:
        return self.engine.live[choice % len(self.engine.live)]

    @rule(half=st.booleans(), prefix=st.integers(0, PREFIXES - 1), shared=st.integers(0, 6), tokens=st.integers(1, 60))
    def admit(self, half: bool, prefix: int, shared: int, tokens: int) -> None:
        sequence = Sequence(f"r{next(serial)}", prefix, shared)
        sequence.grow(tokens)
        self.engine.admit(sequence, half)

    @precondition(lambda self: self.engine.live)
    @rule(choices=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 6)), min_size=1, max_size=60))
    def decode(self, choices: list[tuple[int, int]]) -> None:
        for choice, tokens in choices:
            if self.engine.live:
                self.engine.decode(self.pick(choice), tokens)

    @precondition(lambda self: self.engine.live)
    @rule(choices=st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
    def move(self, choices: list[int]) -> None:
        for choice in choices:
            self.engine.move(self.pick(choice))

    @precondition(lambda self: self.engine.live)
    @rule(choice=st.integers(0, 10**6))
    def end(self, choice: int) -> None:
        self.engine.end(self.pick(choice))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            while self.engine.live:
                self.engine.end(self.engine.live[-1])
            assert self.engine.pool.get_num_free_blocks() == self.engine.num_blocks - 1
            assert self.engine.manager.half_blocks.ids.holes == 0 and self.engine.manager.demand_blocks == 0
            Machine.operations += self.engine.operations
            Machine.found += self.engine.found
            Machine.moved += self.engine.moved


def test_a_hundred_thousand_operations_leak_nothing_and_mix_nothing_up() -> None:
    Machine.operations = Machine.found = Machine.moved = 0
    while Machine.operations < OPERATIONS:
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None, database=None)
        )
    print(f"{Machine.operations} operations, {Machine.found} tokens found by prefix, {Machine.moved} moves to KV")
    assert Machine.found > 0 and Machine.moved > 0
