"""The pool of half blocks: exact arithmetic, no leak, no double owner, and how much memory holes take."""

from __future__ import annotations

import random
from collections import deque

import pytest
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

from vllm_hybrid.cache.pool import HalfBlockPool

OPERATIONS = 20_000
MEAN_HOLES, WORST_HOLES = 0.03, 0.10


class Whole:
    """All blocks but the null block, oldest free first, as vLLM's pool gives them out."""

    def __init__(self, num_blocks: int) -> None:
        self.free = deque(range(1, num_blocks))

    def free_count(self) -> int:
        return len(self.free)

    def take(self, count: int) -> list[int]:
        return [self.free.popleft() for _ in range(count)]

    def give_back(self, ids: list[int]) -> None:
        self.free.extend(ids)

    def claim(self, block_id: int) -> None:
        self.free.remove(block_id)


class Server:
    """Requests of both forms on one memory: the least that drives the pool as an engine does."""

    def __init__(self, num_blocks: int, ratio: int) -> None:
        self.num_blocks, self.operations = num_blocks, 0
        self.whole = Whole(num_blocks)
        self.pool = HalfBlockPool(num_blocks, ratio, self.whole)
        self.requests: list[tuple[bool, list[int]]] = []

    def grow(self, half: bool, ids: list[int], count: int) -> bool:
        """Append `count` blocks to a request's; False if there is no room."""
        self.operations += 1
        needed = self.pool.whole_blocks_needed(count) if half else count
        free = self.whole.free_count()
        if needed > free:
            return False
        ids += self.pool.allocate(count) if half else self.whole.take(count)
        assert self.whole.free_count() == free - needed
        return True

    def admit(self, half: bool, count: int) -> bool:
        ids: list[int] = []
        if not self.grow(half, ids, count):
            return False
        self.requests.append((half, ids))
        return True

    def finish(self, index: int) -> None:
        self.operations += 1
        self.release(*self.requests.pop(index))

    def release(self, half: bool, ids: list[int]) -> None:
        self.pool.free(reversed(ids)) if half else self.whole.give_back(ids)

    def switch(self, index: int) -> None:
        """Move a request to the other form: its new blocks are there before its old ones go."""
        half, old = self.requests[index]
        new: list[int] = []
        if self.grow(not half, new, len(old)):
            self.requests[index] = (not half, new)
            self.release(half, old)

    def check(self) -> None:
        """No leak, no double owner: every block is free, or whole in one request, or split among them."""
        self.pool.integrity()
        owned = [block for _, ids in self.requests for block in ids]
        assert len(owned) == len(set(owned))
        assert all(self.pool.is_half(block) == half for half, ids in self.requests for block in ids)
        halves = {block for block in owned if self.pool.is_half(block)}
        whole = set(owned) - halves
        split = {self.pool.physical(block) for block in halves}
        free = set(self.whole.free)
        assert len(halves) == self.pool.used_halves and len(split) == self.pool.split_blocks
        assert not whole & split and not whole & free and not split & free
        assert len(whole) + len(split) + len(free) == self.num_blocks - 1


class Machine(RuleBasedStateMachine):
    operations = 0
    worst_holes = 0.0

    @initialize(num_blocks=st.integers(4, 120), ratio=st.integers(2, 5))
    def start(self, num_blocks: int, ratio: int) -> None:
        self.server = Server(num_blocks, ratio)

    @rule(half=st.booleans(), count=st.integers(1, 30))
    def admit(self, half: bool, count: int) -> None:
        self.server.admit(half, count)

    @precondition(lambda self: self.server.requests)
    @rule(growths=st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
    def decode(self, growths: list[int]) -> None:
        """Requests fill their last block; one that finds no room loses its memory, as by a preemption."""
        for choice in growths:
            if self.server.requests:
                index = choice % len(self.server.requests)
                half, ids = self.server.requests[index]
                if not self.server.grow(half, ids, 1):
                    self.server.finish(index)

    @precondition(lambda self: self.server.requests)
    @rule(choices=st.lists(st.integers(0, 10**6), min_size=1, max_size=10))
    def switch(self, choices: list[int]) -> None:
        for choice in choices:
            self.server.switch(choice % len(self.server.requests))

    @precondition(lambda self: self.server.requests)
    @rule(choice=st.integers(0, 10**6))
    def finish(self, choice: int) -> None:
        self.server.finish(choice % len(self.server.requests))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "server"):
            self.server.check()

    def teardown(self) -> None:
        if hasattr(self, "server"):
            while self.server.requests:
                self.server.finish(-1)
            assert self.server.whole.free_count() == self.server.num_blocks - 1 and self.server.pool.holes == 0
            Machine.operations += self.server.operations


def test_twenty_thousand_operations_leak_nothing_and_own_nothing_twice() -> None:
    Machine.operations = 0
    while Machine.operations < OPERATIONS:
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None, database=None)
        )


@pytest.mark.parametrize("half_share", [0.1, 0.5, 1.0])
def test_holes_take_little_memory(half_share: float) -> None:
    """Ragged requests come and go at a full memory; holes as a share of it."""
    mean, worst = fragmentation(lambda _: half_share, seed=0)
    print(f"half share {half_share}, seed 0: holes {mean:.2%} of the memory, at most {worst:.2%}")
    assert mean <= MEAN_HOLES and worst <= WORST_HOLES


def test_holes_stay_few_when_the_form_of_all_newcomers_flips_again_and_again() -> None:
    mean, worst = fragmentation(lambda step: float(step // 300 % 2), seed=0)
    print(f"flips, seed 0: holes {mean:.2%} of the memory, at most {worst:.2%}")
    assert mean <= MEAN_HOLES and worst <= WORST_HOLES


def fragmentation(half_share, seed: int, num_blocks: int = 2000, steps: int = 2500) -> tuple[float, float]:
    """Mean and worst share of the memory that is in holes, once the memory is full."""
    chance, server, left = random.Random(seed), Server(num_blocks, 2), []
    shares = []
    for step in range(steps):
        while server.whole.free_count() > num_blocks // 50:
            half = chance.random() < half_share(step)
            if not server.admit(half, 1 + int(chance.expovariate(1 / 15))):
                break
            left.append(1 + int(chance.expovariate(1 / 16)))
        for index in reversed(range(len(left))):
            if chance.random() < 1 / 16:  # a block lasts sixteen tokens
                left[index] -= 1
                half, ids = server.requests[index]
                if left[index] <= 0 or not server.grow(half, ids, 1):
                    server.finish(index)
                    left.pop(index)
        if step > steps // 5:
            shares.append(server.pool.holes / server.pool.ratio / num_blocks)
    server.check()
    return sum(shares) / len(shares), max(shares)


def test_need_counts_holes() -> None:
    server = Server(num_blocks=10, ratio=3)
    first = server.pool.allocate(4)
    assert server.pool.split_blocks == 2 and server.pool.holes == 2
    assert [server.pool.whole_blocks_needed(k) for k in (1, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]
    assert first[:3] == [10 + 3 * 1 + j for j in range(3)]
    server.pool.free(first)
    assert server.whole.free_count() == 9


def test_the_fullest_blocks_are_filled_first() -> None:
    pool = Server(num_blocks=10, ratio=3).pool
    ids = pool.allocate(6)
    pool.free([ids[0], ids[1], ids[3]])
    assert pool.physical(pool.allocate(1)[0]) == pool.physical(ids[3])


def test_what_is_not_in_use_cannot_be_freed_and_what_is_not_there_not_allocated() -> None:
    pool = Server(num_blocks=4, ratio=2).pool
    ids = pool.allocate(5)
    with pytest.raises(ValueError, match="3 half blocks need 1 blocks, 0 are free"):
        pool.allocate(3)
    pool.free(ids[:1])
    with pytest.raises(AssertionError, match="is not in use"):
        pool.free(ids[:1])
    with pytest.raises(ValueError, match="saves nothing"):
        HalfBlockPool(4, 1, Whole(4))
