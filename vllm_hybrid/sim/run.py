"""Runs a workload on a simulated device under a scheduler of vLLM's own or of ours.

The scheduler is the real class with the real block pool; simulated are the device, the model's output and the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from vllm_hybrid.sim.device_models import Device
from vllm_hybrid.sim.records import (
    Contender,
    EngineSettings,
    RequestRecord,
    RunRecord,
    SimError,
    SimRequest,
    StepLog,
)

__all__ = [
    "Contender",
    "EngineSettings",
    "RequestRecord",
    "RunRecord",
    "SimError",
    "SimRequest",
    "StepLog",
    "simulate",
]

Progress = Callable[[float, int], None]
"""Told from time to time: virtual seconds, requests finished."""

_STOCK = ("fcfs", "priority")
_LANES = ("online", "offline")


def simulate(
    requests: Sequence[SimRequest],
    contender: Contender,
    device: Device,
    settings: EngineSettings = EngineSettings(),  # noqa: B008 - frozen
    *,
    until_s: float | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> RunRecord:
    """Serve `requests`, in the order of their arrival, and record what happened.

    until_s: stop then, whatever is unfinished. seed: of the device's noise, where it has any.
    """
    settings = effective_settings(contender, device, settings)
    _check(requests, settings)
    from vllm_hybrid.sim.loop import Simulation  # vLLM takes seconds to import; who only describes runs needs none

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    record = Simulation(requests, contender, device, settings, seed).run(until_s, on_progress)
    record.wall_s, record.cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return record


def effective_settings(contender: Contender, device: Device, settings: EngineSettings) -> EngineSettings:
    """The engine's settings with the contender's own and the device's pool filled in."""
    if contender.stock is not None and contender.stock not in _STOCK:
        raise SimError(f"contender {contender.name}: stock must be one of {', '.join(_STOCK)}, not {contender.stock!r}")
    known = [f.name for f in fields(EngineSettings)]
    for key in contender.engine:
        if key not in known:
            raise SimError(f"contender {contender.name}: unknown engine setting {key!r}; known: {', '.join(known)}")
    settings = replace(settings, **contender.engine)
    if settings.pool_tokens is None:
        settings = replace(settings, pool_tokens=device.kv_tokens)
    if problem := _settings_problem(settings):
        raise SimError(f"contender {contender.name}: {problem}")
    return settings


def _settings_problem(settings: EngineSettings) -> str | None:
    """What vLLM would refuse to start with."""
    for name in ("max_seqs", "step_tokens", "pool_tokens", "block_size", "max_model_len"):
        if getattr(settings, name) < 1:
            return f"{name} = {getattr(settings, name)}: must be at least 1"
    if settings.step_tokens < settings.max_seqs:
        return f"step_tokens = {settings.step_tokens}: must be at least max_seqs, {settings.max_seqs}"
    if not 0 <= settings.watermark < 1:
        return f"watermark = {settings.watermark}: must be at least 0 and below 1"
    if not 0 <= settings.long_prefill_tokens <= settings.max_model_len:
        limit = settings.max_model_len
        return f"long_prefill_tokens = {settings.long_prefill_tokens}: must be 0 to max_model_len, {limit}"
    return None


def _check(requests: Sequence[SimRequest], settings: EngineSettings) -> None:
    assert settings.pool_tokens is not None
    pool_tokens = settings.pool_tokens // settings.block_size * settings.block_size
    seen = set()
    for request in requests:
        problem = _problem(request, settings.max_model_len, pool_tokens)
        if request.request_id in seen:
            problem = "its id occurs twice"
        if problem:
            raise SimError(f"request {request.request_id}: {problem}")
        seen.add(request.request_id)


def _problem(request: SimRequest, max_model_len: int, pool_tokens: int) -> str | None:
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        return f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens; both must be at least 1"
    if not request.arrival_s >= 0:
        return f"arrives at {request.arrival_s} s; times start at 0"
    if request.lane not in _LANES:
        return f"lane {request.lane!r}; known: {', '.join(_LANES)}"
    tokens = request.prompt_tokens + request.output_tokens
    if tokens > max_model_len:
        return f"{tokens} tokens (prompt and output) are more than max_model_len {max_model_len}"
    if tokens > pool_tokens:
        return f"{tokens} tokens (prompt and output) do not fit the pool of {pool_tokens}"
    return None
