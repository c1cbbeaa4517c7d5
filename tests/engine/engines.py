"""A real engine in the test's own process, stepped by hand, and a mixed load of two lanes and several tenants.

Stock and ours get the same arguments and the same load; what they must agree on is the tokens of each request.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from vllm import SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

BLOCK_SIZE = 32
STEP_LIMIT = 6000
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
STOCK: dict[str, Any] = {}
HYBRID: dict[str, Any] = {
    "scheduler_cls": "vllm_hybrid.Scheduler",
    "additional_config": {"hybrid": {"strict": True, "lanes": {"offline": {"preempt_interval_s": 0.05}}}},
}


@dataclass(frozen=True)
class Call:
    """One request of a load."""

    step: int
    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    lane: str = "online"
    client: str = "default"
    priority: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)
    lora: Any = None

    @property
    def params(self) -> SamplingParams:
        greedy = {"max_tokens": self.max_tokens, "temperature": 0.0, "ignore_eos": True}
        return SamplingParams(**(greedy | self.sampling), extra_args={"lane": self.lane, "client": self.client})


def scheduler_of(engine: LLMEngine) -> Scheduler:
    return engine.engine_core.engine_core.scheduler


@contextmanager
def running_engine(model: str, scheduler: Mapping[str, Any] = STOCK, **settings: Any) -> Iterator[LLMEngine]:
    """A float32 engine with prefix caching and small chunks; `settings` are vLLM's engine arguments."""
    arguments = {
        "model": model,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "block_size": BLOCK_SIZE,
        "num_gpu_blocks_override": 400,
        "kv_cache_memory_bytes": 64 << 20,
        "enable_prefix_caching": True,
        "max_num_batched_tokens": 192,
        "max_num_seqs": 8,
    }
    torch.set_num_threads(1)  # a tiny model; more threads only wait for each other
    with patch.dict(os.environ, IN_PROCESS):
        config = EngineArgs(**(arguments | settings | scheduler)).create_engine_config()
        engine = LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False)
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def serve(
    engine: LLMEngine,
    calls: Sequence[Call],
    aborts: Mapping[int, list[str]] = {},
    logprobs: dict[str, list[float]] | None = None,
) -> dict[str, list[list[int]]]:
    """Run the load to its end; request id -> the tokens of each of its samples.

    logprobs: filled with the log probability of every token, where the calls ask for them.
    """
    waiting = sorted(calls, key=lambda call: call.step)
    outputs: dict[str, dict[int, list[int]]] = {}
    step = 0
    while waiting or engine.has_unfinished_requests():
        while waiting and waiting[0].step <= step:
            call = waiting.pop(0)
            engine.add_request(
                call.request_id,
                {"prompt_token_ids": list(call.prompt)},
                call.params,
                lora_request=call.lora,
                priority=call.priority,
            )
        engine.abort_request(aborts.get(step, []))
        for output in engine.step():
            for sample in output.outputs:
                outputs.setdefault(output.request_id, {})[sample.index] = list(sample.token_ids)
                if logprobs is not None:
                    chosen = zip(sample.token_ids, sample.logprobs, strict=True)
                    logprobs[output.request_id] = [position[token].logprob for token, position in chosen]
        step += 1
        assert step < STEP_LIMIT, scheduler_of(engine).get_request_counts()
    return {request_id: [samples[i] for i in sorted(samples)] for request_id, samples in outputs.items()}


def check_clean(engine: LLMEngine) -> None:
    """Nothing is left of the load: no block, no request, no policy error."""
    scheduler = scheduler_of(engine)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert free == scheduler.kv_cache_config.num_blocks - 1
    assert not scheduler.requests and not scheduler.running and not len(scheduler.waiting)
    if hasattr(scheduler, "tally"):
        assert scheduler.tally.policy_errors == 0
        assert not scheduler.parked


def mixed_load(seed: int, offline: int = 10, online: int = 8, **changes: Any) -> list[Call]:
    """Two tenants with an offline backlog, two with online requests that come while it runs; shared prefixes."""
    rng = random.Random(seed)
    shared = [rng.randrange(10, 1000) for _ in range(3 * BLOCK_SIZE)]

    def prompt(most: int, with_prefix: bool) -> tuple[int, ...]:
        own = [rng.randrange(10, 1000) for _ in range(rng.randrange(20, most))]
        return tuple((shared if with_prefix else []) + own)

    calls = [
        Call(i // 4, f"off{i}", prompt(400, i % 2 == 1), rng.randrange(20, 60), "offline", f"b{i % 2}")
        for i in range(offline)
    ]
    calls += [
        Call(8 + 4 * i, f"on{i}", prompt(250, i % 3 == 0), rng.randrange(10, 40), "online", f"u{i % 2}")
        for i in range(online)
    ]
    return [replace(call, **changes) for call in calls]
