"""The steps of the real engine over a grid of batches, timed by the scheduler itself.

The engine runs in this process under the hybrid scheduler without a target, so that its own step timer pairs steps with
their times exactly as in service. A point of the grid is brought up with real requests: their prompts' own chunks count
as measurements too. Before that the largest and the smallest point run once, for what an engine compiles and allocates.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vllm_hybrid.config.profile import Machine
from vllm_hybrid.policy.latency_features import StepWork
from vllm_hybrid.profile.grid import Point, Room, grid

Step = tuple[StepWork, float]
"""What a step computed, and its seconds."""

_DECODE_STEPS = 3  # measured before the chunk joins, and after
_FIRST_TOKEN, _TOKENS = 10, 1_000  # of the vocabulary, as far as it goes; the first are special ones, mostly


@dataclass(frozen=True, slots=True)
class Measurement:
    """All steps of an engine's grid, what it has room for, and what it is."""

    steps: list[Step]
    room: Room
    machine: Machine


def measure(
    model: str, engine: Mapping[str, Any], progress: Callable[[Iterable[Point]], Iterable[Point]]
) -> Measurement:
    """Measure the engine with these arguments."""
    with _engine(model, engine) as (running, room, machine):
        points = grid(room)
        bench = _Bench(running)
        for point in (points[-1], points[0]):
            bench.run(point)
        bench.steps.clear()
        for point in progress(points):
            bench.run(point)
        return Measurement(list(bench.steps), room, machine)


@contextmanager
def _engine(model: str, arguments: Mapping[str, Any]) -> Iterator[tuple[Any, Room, Machine]]:
    """An engine without a process of its own, what it has room for, and what it is."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    from vllm_hybrid.engine.seeding import machine_of
    from vllm_hybrid.settings import engine_kwargs

    plain = {"enable_prefix_caching": False} | dict(arguments)
    config = EngineArgs(model=model, **engine_kwargs({"strict": True}, **plain)).create_engine_config()
    engine = LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False)
    try:
        scheduler, cache = config.scheduler_config, config.cache_config
        room = Room(
            kv_tokens=(cache.num_gpu_blocks - 1) * cache.block_size,  # one is the null block
            max_seqs=scheduler.max_num_seqs,
            step_tokens=scheduler.max_num_batched_tokens,
            max_model_len=config.model_config.max_model_len,
        )
        yield engine, room, machine_of(config)
    finally:
        engine.engine_core.shutdown()


class _Bench:
    """Brings points up in an engine, and keeps what its steps took."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._requests = 0
        self._rng = random.Random(0)
        self._last_token = min(_TOKENS, engine.model_config.get_vocab_size()) - 1
        self.steps: list[Step] = []
        predictor = engine.engine_core.engine_core.scheduler.predictor
        predictor.observe = lambda work, seconds, alone=True: self.steps.append((work, seconds))

    def run(self, point: Point) -> None:
        """Decodes first, then the chunk beside them."""
        names = [self._add(point.context) for _ in range(point.decodes)]
        for _ in range(self._prefill_steps(point) + _DECODE_STEPS):
            self._engine.step()
        names.append(self._add(point.chunk))
        for _ in range(1 + _DECODE_STEPS):
            self._engine.step()
        self._engine.abort_request(names)
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _prefill_steps(self, point: Point) -> int:
        step_tokens = self._engine.vllm_config.scheduler_config.max_num_batched_tokens
        room = max(1, step_tokens - point.decodes)
        return -(-point.decodes * point.context // room) if point.decodes else 0

    def _add(self, prompt_tokens: int) -> str:
        from vllm import SamplingParams

        self._requests += 1
        prompt = [self._rng.randint(_FIRST_TOKEN, self._last_token) for _ in range(prompt_tokens)]
        sampling = SamplingParams(max_tokens=None, temperature=0.0, ignore_eos=True)
        name = f"profile-{self._requests}"
        self._engine.add_request(name, {"prompt_token_ids": prompt}, sampling)
        return name
