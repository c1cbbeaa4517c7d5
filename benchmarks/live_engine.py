"""A real engine in this process, served from a list of requests at their times, and written down like a simulation.

One process and one thread, so that its clock can be the CPU time it used: other work on the machine then does not
count, and waiting for the next arrival is skipped instead of slept through. On an idle machine that is the wall clock,
which can be chosen too.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vllm_hybrid.policy.latency import StepWork
from vllm_hybrid.sim.records import Contender, EngineSettings, RequestRecord, RunRecord, SimRequest

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
_FIRST_TOKEN = 3  # below are the model's special tokens


class Clock:
    """Seconds since it was made: of CPU time, or of the wall."""

    def __init__(self, kind: str) -> None:
        self._read: Callable[[], float] = time.process_time if kind == "cpu" else time.perf_counter
        self._sleeps = kind == "wall"
        self._start_s = self._read()

    def __call__(self) -> float:
        return self._read() - self._start_s

    def idle_until(self, at_s: float) -> None:
        if self._sleeps:
            time.sleep(max(0.0, at_s - self()))
        else:
            self._start_s -= max(0.0, at_s - self())


@dataclass
class Served:
    """A load as the engine served it, and what its steps computed and took."""

    run: RunRecord
    samples: list[tuple[StepWork, float]] = field(default_factory=list)

    def add_step(self, work: StepWork, begin_s: float, seconds: float) -> None:
        self.samples.append((work, seconds))
        log = self.run.steps
        log.start_s.append(begin_s)
        log.seconds.append(seconds)
        log.predicted_s.append(math.nan)
        log.prefill_tokens.append(work.prefill_tokens)
        log.decodes.append(work.decodes)


@contextmanager
def engine_of(model: str, dtype: str, contender: Contender, settings: EngineSettings) -> Iterator[Any]:
    """vLLM's engine with one thread, under `contender`."""
    import torch
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    from vllm_hybrid import engine_kwargs

    assert settings.pool_tokens is not None
    torch.set_num_threads(1)
    scheduler = {"scheduling_policy": contender.stock} if contender.stock else engine_kwargs(contender.hybrid)
    arguments = EngineArgs(
        model=model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=settings.max_model_len,
        block_size=settings.block_size,
        num_gpu_blocks_override=settings.pool_tokens // settings.block_size + 1,  # one is vLLM's null block
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=settings.prefix_caching,
        max_num_batched_tokens=settings.step_tokens,
        max_num_seqs=settings.max_seqs,
        **scheduler,
    )
    config = arguments.create_engine_config()
    engine = LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False)
    torch.set_num_threads(1)  # the worker may have chosen for itself
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def serve(
    engine: Any,
    contender: Contender,
    settings: EngineSettings,
    requests: Sequence[SimRequest],
    clock: Clock,
    until_done: str | None = None,
) -> Served:
    """Serve the requests, each at its time by `clock`; a step's seconds are a whole turn of this loop.

    until_done: a lane; once all of it is served, what is left of the other one is aborted.
    """
    run = RunRecord(contender, "live", settings, 0, [RequestRecord(request) for request in requests])
    served = Served(run)
    records = {record.request.request_id: record for record in run.requests}
    coming = deque(sorted(run.requests, key=lambda record: record.request.arrival_s))
    awaited = sum(request.lane == until_done for request in requests) if until_done else len(requests)
    with _watched(engine, records, clock) as works:
        while awaited:
            if not engine.has_unfinished_requests():
                clock.idle_until(coming[0].request.arrival_s)
            begin_s = clock()
            while coming and coming[0].request.arrival_s <= clock():
                add(engine, coming.popleft().request)
            for output in engine.step():
                record = records[output.request_id]
                _note(record, output, clock())
                awaited -= output.finished and until_done in (None, record.request.lane)
            for work in works:
                served.add_step(work, begin_s, clock() - begin_s)
            works.clear()
    run.end_s = clock()
    engine.abort_request([name for name, record in records.items() if record.finished_s is None])
    while engine.has_unfinished_requests():
        engine.step()
    return served


@contextmanager
def _watched(engine: Any, records: Mapping[str, RequestRecord], clock: Clock) -> Iterator[list[StepWork]]:
    """Collects what each scheduled step computes while the block runs."""
    scheduler = engine.engine_core.engine_core.scheduler
    own_schedule = scheduler.schedule
    works: list[StepWork] = []

    def schedule(*arguments: Any, **keywords: Any) -> Any:
        step = own_schedule(*arguments, **keywords)
        for new in step.scheduled_new_reqs:
            records[new.req_id.rpartition("-")[0]].scheduled_s = clock()  # vLLM adds a suffix of its own
        if step.total_num_scheduled_tokens:
            works.append(_work(step.num_scheduled_tokens, scheduler.requests))
        return step

    scheduler.schedule = schedule
    try:
        yield works
    finally:
        del scheduler.schedule


def _work(scheduled: Mapping[str, int], requests: Mapping[str, Any]) -> StepWork:
    """A step in the terms in which the simulator's loop hands it to a device."""
    work = StepWork()
    for request_id, tokens in scheduled.items():
        end = requests[request_id].num_computed_tokens  # vLLM has advanced it
        if tokens == 1:
            work.decodes += 1
            work.context_tokens += end
        else:
            work.prefill_tokens += tokens
            work.pairs += tokens * (end - tokens + tokens / 2)
    return work


def add(engine: Any, request: SimRequest) -> None:
    from vllm import SamplingParams

    words = random.Random(request.request_id)
    prompt = [words.randrange(_FIRST_TOKEN, 200) for _ in range(request.prompt_tokens)]
    identity = {"client": request.client, "lane": request.lane}
    sampling = SamplingParams(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True, extra_args=identity)
    engine.add_request(request.request_id, {"prompt_token_ids": prompt}, sampling, priority=request.priority)


def _note(record: RequestRecord, output: Any, now_s: float) -> None:
    """Date the tokens that are new in this output."""
    record.token_s.extend([now_s] * (len(output.outputs[0].token_ids) - len(record.token_s)))
    if output.finished:
        record.finished_s = now_s
