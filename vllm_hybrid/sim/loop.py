"""The engine core's loop around a real scheduler, with a device model in the place of the GPU.

Sync: schedule, compute, update. Async: step k + 1 is scheduled while step k computes, as vLLM does with its batch
queue of two. Requests enter between turns of the loop, as in vLLM. A turn that schedules nothing although requests
wait (a policy holds them back) passes `IDLE_TURN_S`, or the time to the next arrival if that is sooner.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from math import nan
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_hybrid.engine.scheduler import HybridScheduler, HybridSyncScheduler
from vllm_hybrid.engine.tally import StepMode
from vllm_hybrid.policy.latency import StepTimePredictor
from vllm_hybrid.policy.presets import request_rate
from vllm_hybrid.sim.batch import END_TOKEN, Batch, BatchReader, Live
from vllm_hybrid.sim.device_models import Device, HalfCost, HalfForm
from vllm_hybrid.sim.modelfree import STOCK, Classes, World, block_hasher, build
from vllm_hybrid.sim.prompts import PromptTokens
from vllm_hybrid.sim.records import Contender, EngineSettings, RequestRecord, RunRecord, SimError, SimRequest

OURS = Classes(HybridSyncScheduler, HybridScheduler)
IDLE_TURN_S = 0.005
STUCK_S = 3600.0  # without a step, and with no arrival to wait for
PROGRESS_STEPS = 512


@lru_cache(maxsize=4096)
def _sampling(max_tokens: int, client: str, lane: str, known: bool) -> SamplingParams:
    """Greedy, to the given length, or to the end token before; lane and client travel as on a server."""
    identity = {"client": client, "lane": lane}
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=0.0,
        ignore_eos=True,
        stop_token_ids=None if known else [END_TOKEN],
        extra_args=identity,
    )


class Simulation:
    """One run: a scheduler, a device, a clock and the requests to come."""

    def __init__(
        self, requests: Sequence[SimRequest], contender: Contender, device: Device, settings: EngineSettings, seed: int
    ) -> None:
        self.now_s = 0.0
        self.device = device
        half_form = half_form_of(contender, device, settings)
        self.scheduler: Any = _make_scheduler(contender, settings, half_form, device)
        self.scheduler.clock = lambda: self.now_s  # ours reads it; stock reads none
        self.record = RunRecord(contender, device.name, settings, seed, [RequestRecord(r) for r in requests])
        self._coming = deque(sorted(self.record.requests, key=lambda r: r.request.arrival_s))
        self._prompts = PromptTokens(shared=not settings.prefix_caching)
        self._hasher = block_hasher(settings.block_size) if settings.prefix_caching else None
        self._live: dict[str, Live] = {}
        blocks = None if half_form is None else self.scheduler.blocks
        halves = blocks.half_requests if blocks else frozenset()
        self._reader = BatchReader(self._live, half_form, halves, settings.known_lengths)
        self._random = random.Random(seed)
        self._predictor: StepTimePredictor | None = getattr(self.scheduler, "predictor", None)
        self._rate = None if contender.stock else request_rate(self.scheduler.hybrid_config)
        self._depth = 2 if settings.async_mode else 1
        self._in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput, float]] = deque()
        self._device_free_s = 0.0
        self._worked_s = 0.0  # when a step was scheduled last
        self._finished = 0

    def run(self, until_s: float | None, on_progress: Any = None) -> RunRecord:
        """Everything, or the steps that begin before `until_s`. May be called again to go on."""
        steps = 0
        while self._coming or self._live or self._in_flight:
            if until_s is not None and self.now_s >= until_s:
                break
            self._arrivals()
            if not self._live and not self._in_flight:
                if not self._coming:  # all that came was refused
                    break
                self.now_s = self._coming[0].request.arrival_s
                continue
            self._turn()
            steps += 1
            if on_progress is not None and steps % PROGRESS_STEPS == 0:
                on_progress(self.now_s, self._finished)
        return self._close(until_s)

    def _arrivals(self) -> None:
        coming = self._coming
        while coming and coming[0].request.arrival_s <= self.now_s:
            record = coming.popleft()
            if self._refuses(record.request):
                record.refused = True
                continue
            request = self._make_request(record.request)
            self._live[request.request_id] = Live(record, request)
            self.scheduler.add_request(request)

    def _refuses(self, request: SimRequest) -> bool:
        """Whether a server's front end would turn the request away."""
        rate = self._rate
        return rate is not None and rate.retry_after_s(request.client, request.arrival_s) is not None

    def _make_request(self, request: SimRequest) -> Request:
        settings = self.record.settings
        known = settings.known_lengths
        max_tokens = request.output_tokens if known else settings.max_model_len - request.prompt_tokens
        return Request(
            request.request_id,
            self._prompts.of(request),
            _sampling(max_tokens, request.client, request.lane, known),
            None,
            arrival_time=request.arrival_s,
            priority=request.priority,
            block_hasher=self._hasher,
        )

    def _turn(self) -> None:
        """One turn of the engine core's loop."""
        tokens = 0
        if self.scheduler.has_requests():
            tokens = self._schedule()
            if len(self._in_flight) < self._depth and (tokens or self.scheduler.has_requests()):
                return
        if self._in_flight:
            self._update()
        if not tokens and self._live and self._device_free_s <= self.now_s:
            self._idle()

    def _schedule(self) -> int:
        step = self.scheduler.schedule()
        tokens = step.total_num_scheduled_tokens
        begin_s = max(self.now_s, self._device_free_s)
        if not tokens:
            output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
            self._in_flight.append((step, output, begin_s))
            return 0
        for new in step.scheduled_new_reqs:
            record = self._live[new.req_id].record
            if record.scheduled_s is None:
                record.scheduled_s, record.cached_tokens = self.now_s, new.num_computed_tokens
        batch = self._reader.read(step)
        seconds = self._log(batch, begin_s, tokens)
        self._worked_s = self.now_s
        self._device_free_s = begin_s + seconds
        self._in_flight.append((step, batch.output, self._device_free_s))
        return tokens

    def _log(self, batch: Batch, begin_s: float, tokens: int) -> float:
        seconds = self.device.batch_seconds(
            batch.prefills, batch.decodes, batch.context_tokens, batch.longest_tokens, batch.half
        )
        if self.device.noise_ratio:
            seconds *= max(0.0, self._random.gauss(1.0, self.device.noise_ratio))
        log = self.record.steps
        log.start_s.append(begin_s)
        log.seconds.append(seconds)
        log.predicted_s.append(self._predicted_s())
        log.prefill_tokens.append(tokens - batch.decodes)
        log.decodes.append(batch.decodes)
        return seconds

    def _predicted_s(self) -> float:
        predictor = self._predictor
        if predictor is None or not predictor.ready:
            return nan
        return predictor.seconds(self.scheduler.ledger.work)

    def _update(self) -> None:
        step, output, done_s = self._in_flight.popleft()
        self.now_s = max(self.now_s, done_s)
        delivered_s = self.now_s + self.device.request_overhead_s
        live = self._live
        for outputs in self.scheduler.update_from_output(step, output).values():
            for item in outputs.outputs:
                record = live[item.request_id].record
                if item.new_token_ids:
                    record.token_s.append(delivered_s)
                if item.finish_reason is not None:
                    self._leave(item.request_id, delivered_s)

    def _leave(self, request_id: str, delivered_s: float) -> None:
        entry = self._live.pop(request_id)
        record = entry.record
        record.preemptions = entry.request.num_preemptions
        record.refused = len(record.token_s) < record.request.output_tokens
        record.finished_s = None if record.refused else delivered_s
        self._finished += 1

    def _idle(self) -> None:
        if not self._coming and self.now_s - self._worked_s > STUCK_S:
            raise SimError(
                f"{self.record.contender.name}: {len(self._live)} requests wait and nothing was scheduled "
                f"for {STUCK_S:g} s"
            )
        turn_s = self.now_s + IDLE_TURN_S
        self.now_s = min(turn_s, self._coming[0].request.arrival_s) if self._coming else turn_s

    def _close(self, until_s: float | None) -> RunRecord:
        record, scheduler = self.record, self.scheduler
        record.end_s = self.now_s if until_s is None else min(self.now_s, until_s)
        for entry in self._live.values():
            entry.record.preemptions = entry.request.num_preemptions
        tally = getattr(scheduler, "tally", None)
        if tally is None:
            record.stock_steps = len(record.steps)
            return record
        record.policy_errors = tally.policy_errors
        record.stock_steps = tally.steps[StepMode.STOCK]
        record.planned_steps = tally.steps[StepMode.PLAN]
        record.reused_steps = tally.steps[StepMode.REUSE]
        record.fallback_steps = tally.steps[StepMode.FALLBACK]
        return record


def half_form_of(contender: Contender, device: Device, settings: EngineSettings) -> HalfForm | None:
    """The form beside KV, as the device's cost model calls it; None: KV only."""
    cache = contender.hybrid.get("cache", "off")
    hidden: HalfForm = "projected" if settings.project_hidden else "hidden"
    if cache == "off" or (cache == "auto" and hidden not in device.half_forms):
        return None
    form: HalfForm = "fp8" if cache == "fp8" else hidden
    if form not in device.half_forms:
        raise SimError(f"{contender.name}: cache = {cache!r}: device {device.name}: {device.no_half_form(form)}")
    return form


def _make_scheduler(
    contender: Contender, settings: EngineSettings, half_form: HalfForm | None, device: Device
) -> Scheduler:
    assert settings.pool_tokens is not None
    world = World(
        async_mode=settings.async_mode,
        num_blocks=settings.pool_tokens // settings.block_size + 1,  # vLLM keeps one as its null block
        max_seqs=settings.max_seqs,
        step_tokens=settings.step_tokens,
        policy=contender.stock or "fcfs",
        prefix_caching=settings.prefix_caching,
        watermark=settings.watermark,
        long_prefill_tokens=settings.long_prefill_tokens,
        hybrid=tuple({**contender.hybrid, "strict": True}.items()),
        max_model_len=settings.max_model_len,
        block_size=settings.block_size,
        half_cost=None if half_form is None else HalfCost(device, half_form),
        halves=1 if half_form is None else 2,  # both forms take half of KV: fp8 of 16 bits, x where H = nkv * hd
    )
    return build(STOCK if contender.stock else OURS, world)
