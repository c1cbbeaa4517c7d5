"""616 small loads around one upstream bug: `--scheduling-policy priority` with prefix caching on.

A low-priority request is scheduled first in a step and then preempted in the same step. Its new blocks stay in the
prefix cache although nobody computed them; the request resumes on them. Three requests are enough: A is long and
yields to B and C, which come a step apart; pool size and lengths move the preemption over the critical step.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.oracle.shadow import OracleError, ShadowWorker
from tests.oracle.workload import Job, Played, check_end
from vllm_hybrid.sim.modelfree import VOCAB, Classes, EngineLoop, World, build, engine_config, make_request

_TURNS = 400


@dataclass(frozen=True)
class Case:
    """Free blocks of the pool and prompt lengths of B and C; A has 400 tokens."""

    free_blocks: int
    b_tokens: int
    c_tokens: int

    def jobs(self, two_lanes: bool) -> list[Job]:
        rng = random.Random(0)

        def job(turn: int, name: str, tokens: int, max_tokens: int, priority: int, lane: str) -> Job:
            prompt = tuple(rng.randrange(VOCAB) for _ in range(tokens))
            identity = (("lane", lane), ("client", name)) if two_lanes else ()
            return Job(turn, name, prompt, max_tokens, priority, identity)

        return [
            job(0, "A", 400, 8, 5, "offline"),
            job(1, "B", self.b_tokens, 40, 0, "online"),
            job(2, "C", self.c_tokens, 12, 0, "online"),
        ]


def cases() -> Iterator[Case]:
    for free_blocks, c_tokens, b_tokens in itertools.product(range(26, 40), (60, 90, 120, 150), range(1, 33, 3)):
        yield Case(free_blocks, b_tokens, c_tokens)


def world(async_mode: bool = False) -> World:
    return World(async_mode, max_seqs=8, step_tokens=96, policy="priority", long_prefill_tokens=64)


def wrong_cases(classes: Classes, async_mode: bool = False, two_lanes: bool = False) -> dict[Case, str]:
    """The cases in which a request got wrong KV or wrong tokens, and what was wrong."""
    base = world(async_mode)
    config = engine_config(base)
    wrong = {}
    for case in cases():
        here = World(**{**base.__dict__, "num_blocks": case.free_blocks + 1})
        config.cache_config.num_gpu_blocks = here.num_blocks
        loop = EngineLoop(build(classes, here, config), ShadowWorker(here), async_mode)
        jobs = case.jobs(two_lanes)
        try:
            _play(loop, jobs)
            check_end(Played(loop, jobs))
        except OracleError as error:
            wrong[case] = str(error)
    return wrong


def _play(loop: EngineLoop, jobs: list[Job]) -> None:
    for job in jobs:
        loop.add(
            make_request(
                job.request_id, list(job.prompt), job.max_tokens, job.arrival_step, job.priority, dict(job.identity)
            )
        )
        loop.step()
    for _ in range(_TURNS):
        if not loop.busy:
            return
        loop.step()
