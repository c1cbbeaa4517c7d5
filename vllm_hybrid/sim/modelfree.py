"""The real scheduler classes without a model: vLLM's own configuration, block pool and queues, nothing computed.

A `World` names everything a test varies. `build` makes a scheduler for it exactly as vLLM's engine core does, from a
folder that holds only a `config.json`. `EngineLoop` is the engine core's step: schedule, execute, update - or, in async
mode, schedule step k+1 before step k is updated. Time is virtual: a step takes what `step_seconds` says.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_hybrid.cache.spec import with_half_blocks

BLOCK_SIZE = 16
VOCAB = 1000
MAX_MODEL_LEN = 2048

MODEL = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@dataclass(frozen=True)
class World:
    """One scheduler and the machine around it."""

    async_mode: bool = False
    num_blocks: int = 400  # one of them is vLLM's null block
    max_seqs: int = 16
    step_tokens: int = 256
    drafts: int = 0
    policy: str = "fcfs"
    prefix_caching: bool = True
    watermark: float = 0.0
    long_prefill_tokens: int = 0
    v2_runner: bool = False
    hybrid: tuple[tuple[str, Any], ...] = (("strict", True),)  # settings of our classes; stock ignores them
    max_model_len: int = MAX_MODEL_LEN
    block_size: int = BLOCK_SIZE
    halves: int = 1  # half blocks per block; 1: KV only
    half_cost: Any = None  # answers `half_extra_s(rows, context_tokens)`; None: not known


@dataclass(frozen=True)
class Classes:
    """The scheduler classes for the two kinds of engine loop."""

    sync: type[Scheduler]
    asynchronous: type[AsyncScheduler]

    def of(self, world: World) -> type[Scheduler]:
        return self.asynchronous if world.async_mode else self.sync


STOCK = Classes(Scheduler, AsyncScheduler)


@functools.cache
def _config_folder(max_model_len: int) -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="scheduler-without-model-")
    model = MODEL | {"max_position_embeddings": max_model_len}
    Path(folder.name, "config.json").write_text(json.dumps(model))
    return folder


@functools.cache
def block_hasher(block_size: int = BLOCK_SIZE) -> Callable[[Request], list[Any]]:
    """What gives a request its block hashes; needed where prefix caching is on."""
    hash_function = get_hash_fn_by_name("sha256")
    init_none_hash(hash_function)
    return get_request_block_hasher(block_size, hash_function)


def engine_config(world: World) -> VllmConfig:
    """vLLM's configuration of `world`."""
    drafting = {"method": "ngram", "num_speculative_tokens": world.drafts, "prompt_lookup_max": 3}
    config = EngineArgs(
        model=_config_folder(world.max_model_len).name,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=world.max_model_len,
        block_size=world.block_size,
        max_num_seqs=world.max_seqs,
        max_num_batched_tokens=world.step_tokens,
        scheduling_policy=world.policy,
        enable_prefix_caching=world.prefix_caching,
        watermark=world.watermark,
        long_prefill_token_threshold=world.long_prefill_tokens,
        speculative_config=drafting if world.drafts else None,
        additional_config={"hybrid": dict(world.hybrid)},
    ).create_engine_config()
    # The CPU platform turns async scheduling off after it was asked for; the class under test decides here.
    config.scheduler_config.async_scheduling = world.async_mode
    config.cache_config.num_gpu_blocks = world.num_blocks
    return config


def build(classes: Classes, world: World, config: VllmConfig | None = None) -> Scheduler:
    """A scheduler, made as the engine core makes it. Pass `config` to make many of the same world."""
    config = config or engine_config(world)
    attention = FullAttentionSpec(block_size=world.block_size, num_kv_heads=1, head_size=1, dtype=torch.float16)
    if world.halves > 1:
        attention = with_half_blocks(attention, world.halves, world.half_cost)
    scheduler = classes.of(world)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=world.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=world.block_size,
        hash_block_size=world.block_size,
        log_stats=False,
    )
    scheduler.use_v2_model_runner = world.v2_runner
    return scheduler


def make_request(
    request_id: str,
    prompt: list[int],
    max_tokens: int,
    arrival_s: float = 0.0,
    priority: int = 0,
    extra_args: dict[str, str] | None = None,
) -> Request:
    """A greedy request; `extra_args` carries lane and client."""
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=0.0, ignore_eos=True, extra_args=dict(extra_args) if extra_args else None
    )
    return Request(
        request_id,
        prompt,
        sampling,
        None,
        arrival_time=arrival_s,
        priority=priority,
        block_hasher=block_hasher(),
    )


class Worker(Protocol):
    """What executes the steps."""

    drafts: int

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput: ...

    def take_drafts(self) -> DraftTokenIds | None: ...


class EngineLoop:
    """The engine core's loop around one scheduler and one worker, under virtual time."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        async_mode: bool = False,
        step_seconds: Callable[[int], float] = lambda tokens: 0.008 + 6e-5 * tokens,
        on_schedule: Callable[[SchedulerOutput], None] = lambda step: None,
    ) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self.async_mode = async_mode
        self.step_seconds = step_seconds
        self.on_schedule = on_schedule
        self.now_s = 0.0
        self.steps = 0
        self.outputs: dict[str, list[int]] = {}
        self.finished: set[str] = set()
        self._device_free_s = 0.0
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput, float]] = deque()
        scheduler.clock = lambda: self.now_s  # our classes read it; stock does not

    @property
    def busy(self) -> bool:
        return self.scheduler.has_requests() or bool(self._in_flight)

    def add(self, request: Request) -> None:
        self.scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def step(self) -> int | None:
        """One turn of the loop; the number of tokens it scheduled, None if it scheduled no step at all."""
        scheduled = None
        if self.scheduler.has_requests():
            scheduled = self._schedule()
            if self.async_mode and len(self._in_flight) < 2 and (scheduled or self.scheduler.has_requests()):
                return scheduled
        if self._in_flight:
            self._update()
        return scheduled

    def _schedule(self) -> int:
        step = self.scheduler.schedule()
        self.steps += 1
        self.on_schedule(step)
        tokens = step.total_num_scheduled_tokens
        self._device_free_s = max(self.now_s, self._device_free_s) + self.step_seconds(tokens)
        self._in_flight.append((step, self.worker.execute(step), self._device_free_s))
        return tokens

    def _update(self) -> None:
        step, output, done_s = self._in_flight.popleft()
        self.now_s = max(self.now_s, done_s)
        for outputs in self.scheduler.update_from_output(step, output).values():
            for item in outputs.outputs:
                self.outputs.setdefault(item.request_id, []).extend(item.new_token_ids)
                if item.finish_reason is not None:
                    self.finished.add(item.request_id)
        if self.worker.drafts and not self.async_mode and step.total_num_scheduled_tokens:
            drafts = self.worker.take_drafts()
            if drafts is not None:
                self.scheduler.update_draft_token_ids(drafts)
