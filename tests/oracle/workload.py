"""Seeded loads for the oracle, and the player that runs one to its end and checks everything about it.

A load is drawn once and may be played on several schedulers. Prompts share prefixes, so that the prefix cache is hit;
arrivals are steps of the loop. After the end `check_end` holds the outputs against the truth and looks for leaks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm.v1.core.sched.output import SchedulerOutput

from tests.oracle.shadow import OracleError, ShadowWorker, expected_output
from vllm_hybrid.sim.modelfree import VOCAB, Classes, EngineLoop, World, build, make_request


class StallError(AssertionError):
    """Requests are left, and the scheduler has scheduled nothing for a long time."""


@dataclass(frozen=True)
class Job:
    """One request of a load."""

    arrival_step: int
    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    priority: int = 0
    identity: tuple[tuple[str, str], ...] = ()  # lane and client


@dataclass(frozen=True)
class Shape:
    """From what a load is drawn."""

    jobs: int = 60
    prompt_tokens: int = 400
    output_tokens: int = 60
    arrival_steps: int = 60
    clients: int = 5
    offline_share: float = 0.5
    one_client: bool = False  # no lane, no client: the caller knows nothing of us
    priorities: int = 1
    abort_rate: float = 0.03  # per step
    shared_rate: float = 0.5


def draw_load(seed: int, shape: Shape) -> list[Job]:
    rng = random.Random(seed)
    shared = [[rng.randrange(VOCAB) for _ in range(rng.randrange(30, 150))] for _ in range(4)]

    def job(i: int) -> Job:
        prefix = rng.choice(shared) if rng.random() < shape.shared_rate else []
        own = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, shape.prompt_tokens))]
        lane = "offline" if rng.random() < shape.offline_share else "online"
        client = f"c{rng.randrange(shape.clients)}"
        return Job(
            arrival_step=rng.randrange(shape.arrival_steps),
            request_id=f"r{i}",
            prompt=tuple(prefix + own),
            max_tokens=rng.randrange(1, shape.output_tokens),
            priority=rng.randrange(shape.priorities),
            identity=() if shape.one_client else (("lane", lane), ("client", client)),
        )

    return sorted((job(i) for i in range(shape.jobs)), key=lambda j: j.arrival_step)


@dataclass
class Played:
    """What came of a load."""

    loop: EngineLoop
    jobs: Sequence[Job]
    aborted: set[str] = field(default_factory=set)


def play(
    classes: Classes,
    world: World,
    jobs: Sequence[Job],
    seed: int = 0,
    abort_rate: float = 0.0,
    on_schedule: Callable[[SchedulerOutput], None] = lambda step: None,
    prepare: Callable[[EngineLoop], None] = lambda loop: None,
    stall_limit: int = 400,
) -> Played:
    """Run the load to its end. Aborts hit a random live request at `abort_rate` per step."""
    scheduler = build(classes, world)
    loop = EngineLoop(scheduler, ShadowWorker(world, seed), world.async_mode, on_schedule=on_schedule)
    prepare(loop)
    rng = random.Random(seed)
    played = Played(loop, jobs)
    turn = idle_turns = arrived = 0
    while arrived < len(jobs) or loop.busy:
        while arrived < len(jobs) and jobs[arrived].arrival_step <= turn:
            _submit(loop, jobs[arrived])
            arrived += 1
        if abort_rate and rng.random() < abort_rate and scheduler.requests:
            victim = rng.choice(sorted(scheduler.requests))
            played.aborted.add(victim)
            loop.abort(victim)
        idle_turns = 0 if loop.step() else idle_turns + 1
        turn += 1
        if idle_turns > stall_limit:
            raise StallError(f"{idle_turns} turns without a token: {scheduler.get_request_counts()} (running, waiting)")
    return played


def _submit(loop: EngineLoop, job: Job) -> None:
    loop.add(
        make_request(
            job.request_id, list(job.prompt), job.max_tokens, loop.now_s, job.priority, dict(job.identity) or None
        )
    )


def check_end(played: Played) -> None:
    """Every output is the true one, and nothing is left behind."""
    for job in played.jobs:
        truth = expected_output(list(job.prompt), job.max_tokens)
        output = played.loop.outputs.get(job.request_id, [])
        if output != (truth[: len(output)] if job.request_id in played.aborted else truth):
            raise OracleError(f"{job.request_id}: wrong output, {len(output)} of {len(truth)} tokens")
    check_empty(played.loop)


def check_empty(loop: EngineLoop) -> None:
    """No block leaked, no queue or table holds anything."""
    scheduler = loop.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    leaked = scheduler.kv_cache_config.num_blocks - 1 - pool.get_num_free_blocks()
    if leaked:
        raise OracleError(f"{leaked} blocks leaked")
    left = {
        "requests": scheduler.requests,
        "running": scheduler.running,
        "waiting": scheduler.waiting,
        "kv_holding_waiting": scheduler.kv_holding_waiting,
        "deferred_waiting": scheduler.deferred_waiting,
        "_inflight_prefills": scheduler._inflight_prefills,
    }
    left |= {name: vars(scheduler)[name] for name in ("parked", "_live", "_caps") if name in vars(scheduler)}
    for name, container in left.items():
        if len(container):
            raise OracleError(f"{len(container)} left in {name}")


def run_and_check(classes: Classes, world: World, seed: int, shape: Shape) -> Played:
    """Draw, play and check the load of one seed."""
    played = play(classes, world, draw_load(seed, shape), seed, shape.abort_rate)
    check_end(played)
    return played
