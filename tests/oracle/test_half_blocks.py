"""Half blocks on the real scheduler classes: what a request reads is its own, whatever shares the memory."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
from vllm.v1.core.sched.output import SchedulerOutput

from tests.oracle.chaos import CHAOS, USUAL, unleash
from tests.oracle.shadow import ShadowWorker
from tests.oracle.workload import Shape, check_end, draw_load, play
from vllm_hybrid.cache.capability import CapabilityError
from vllm_hybrid.cache.manager import HalfBlockManager
from vllm_hybrid.cache.scheduler import HalfBlockScheduler, half_block_manager
from vllm_hybrid.sim.modelfree import Classes, EngineLoop, World, build, make_request

pytestmark = pytest.mark.oracle

SEEDS = 2
HALF = Classes(HalfBlockScheduler, HalfBlockScheduler)


class Watch:
    """Checks the books after every step, and counts what the test shall not have missed."""

    def __init__(self) -> None:
        self.seen = {"half": 0, "kv": 0, "found": 0}
        self.blocks: HalfBlockManager

    def prepare(self, loop: EngineLoop, seed: int) -> None:
        unleash(loop, seed, USUAL)
        self.blocks, self._next = loop.scheduler.blocks, loop.on_schedule
        loop.on_schedule = self.on_schedule

    def on_schedule(self, step: SchedulerOutput) -> None:
        self._next(step)
        self.blocks.integrity()
        for new in step.scheduled_new_reqs:
            half = new.req_id in self.blocks.half_requests
            self.seen["half" if half else "kv"] += 1
            self.seen["found"] += new.num_computed_tokens if half else 0


@pytest.mark.parametrize("async_mode", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("halves", [2, 3])
def test_no_plan_changes_an_output(async_mode: bool, halves: int) -> None:
    """Random legal plans, with preemption, parking and prefixes; forms change with the pressure."""
    moved, watch = 0, Watch()
    for seed in range(SEEDS):
        world = World(async_mode, num_blocks=160, halves=halves)
        prepare = functools.partial(watch.prepare, seed=seed)
        played = play(CHAOS, world, draw_load(seed, Shape()), seed, 0.03, prepare=prepare)
        check_end(played)
        watch.blocks.integrity()
        assert watch.blocks.demand_blocks == 0 and not watch.blocks.half_requests
        moved += watch.blocks.moves
    assert min(watch.seen.values()) > 0 and moved > 0, (watch.seen, moved)


class Told(HalfBlockScheduler):
    """Forms as the test says."""

    half = True

    def takes_half(self, request) -> bool:
        return self.half

    def moves_to_kv(self, request) -> bool:
        return False


def found_tokens(scheduler: Told, loop: EngineLoop, request_id: str, salt: str | None, half: bool) -> int:
    """Serve a request with the one prompt to its end; how much of it was cached."""
    scheduler.half = half
    request = make_request(request_id, PROMPT, 4)
    request.cache_salt = salt
    request.block_hashes.clear()
    request.update_block_hashes()
    found = []
    loop.on_schedule = lambda step: found.extend(new.num_computed_tokens for new in step.scheduled_new_reqs)
    loop.add(request)
    while loop.busy:
        loop.step()
    return found[0]


PROMPT = [random.Random(0).randrange(900) for _ in range(100)]


def test_prefixes_are_shared_within_a_form_and_a_salt_only() -> None:
    world = World(halves=2)
    scheduler = build(Classes(Told, Told), world)
    loop = EngineLoop(scheduler, ShadowWorker(world))
    cases = [("a", True, 0), ("a", True, 96), ("b", True, 0), ("b", True, 96), (None, True, 0)]
    cases += [("a", False, 0), ("a", False, 96), ("a", True, 96)]
    for i, (salt, half, wanted) in enumerate(cases):
        assert found_tokens(scheduler, loop, f"r{i}", salt, half) == wanted, (i, salt, half)
    assert scheduler.reset_prefix_cache()
    assert found_tokens(scheduler, loop, "last", "a", True) == 0


def test_what_a_cached_block_held_is_forgotten_when_it_is_given_out_anew() -> None:
    world = World(num_blocks=12, halves=2, max_model_len=192)
    scheduler = build(Classes(Told, Told), world)
    loop = EngineLoop(scheduler, ShadowWorker(world))
    assert found_tokens(scheduler, loop, "first", None, True) == 0
    for i in range(3):  # others use up the memory
        loop.add(make_request(f"other{i}", [(7 * i + j) % 900 for j in range(170)], 4))
    while loop.busy:
        loop.step()
    assert found_tokens(scheduler, loop, "again", None, True) == 0
    scheduler.blocks.integrity()


def test_workers_that_do_not_fit_the_scheduler_are_refused() -> None:
    kv_only = build(HALF, World())
    assert half_block_manager(kv_only.kv_cache_manager, "kv") is None
    with pytest.raises(CapabilityError, match="hidden was decided, but the workers keep KV only"):
        half_block_manager(kv_only.kv_cache_manager, "hidden")
    scheduler = build(HALF, World(halves=2))
    manager = scheduler.blocks
    manager.kv_cache_spec = dataclasses.replace(manager.kv_cache_spec, version="0.0.1")
    with pytest.raises(CapabilityError, match=r"the workers run vllm_hybrid 0\.0\.1, the scheduler"):
        half_block_manager(scheduler.kv_cache_manager, "hidden")
    with pytest.raises(CapabilityError, match="the memory holds no block besides"):
        build(HALF, World(num_blocks=1, halves=2))
