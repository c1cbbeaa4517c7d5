"""The engine of the VTC paper, as far as it shows in the figures and is not an option of ours.

That a request is admitted only if all it may come to hold fits is `memory.gate`.  Only this benchmark has the rest, so
that figures are compared under equal engines:

* Admissions are looked for from the tenth decode step after the last one on, and at once where nothing runs.
* What they are given is counted in tokens, not in blocks of several, and up to a sixth of the pool at once.
* Every client that runs takes `CLIENT_TOKENS` off the pool: the engine tells clients apart by their adapters.
* Prompts are computed in steps of their own.  Its seconds are those of a step of both kinds here, except for short
  prompts: as it reads all weights, such a step takes no less than a decode step.
* It is a real one.  Its step times scatter, requests that are sent at the same moment arrive within `ARRIVAL_S` of each
  other, and a decode step has `ENGINE_S` of its own on top of what was measured on the device.  Without the first two,
  equal requests at equal distances lock into the interval between admissions, and the same work takes 4 % more or less
  time.  `ENGINE_S` is set once, so that `overload` under VTC has its published 893 tokens/s; all else follows from it.
  The ablation runs without these three: its devices were fitted to its step times on an engine without them
  (`fit_vtc_ablation.py`).  With them, one of its six gaps (35,000 tokens, length 256) is more than twice as large.

The claims about preemption were made on an engine without a gate, where a request that lost its memory stands at the
head of its client's queue again and waits until its client has the smallest counter.  Our own policies let it come
back before anybody new, as vLLM does.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

from vllm_hybrid.config import HybridConfig
from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.gate import Gate, GatedPlanner
from vllm_hybrid.policy.groups import Groups
from vllm_hybrid.policy.latency import StepTimePredictor, StepWork
from vllm_hybrid.policy.plan import StepPlan, StepView
from vllm_hybrid.policy.planner import Planner
from vllm_hybrid.policy.presets import PRESETS, Preset
from vllm_hybrid.policy.published.batch import BatchPlanner
from vllm_hybrid.policy.published.orders import LeastServed
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView
from vllm_hybrid.sim.device_models import Chunk, Device, LinearDevice
from vllm_hybrid.sim.run import EngineSettings, SimRequest

ADMISSION_STEPS = 10
CLIENT_TOKENS = 32
ENGINE_S = 0.0005
NOISE_RATIO = 0.04
ARRIVAL_S = 0.02
_LEAST_BATCH_TOKENS = 3_072

_clients: Mapping[str, str] = {}
"""Request id -> client: policies that tell no clients apart do not see them, the paper's engine does."""


class ClientGate(Gate):
    """The gate of a pool in which every running client takes some room for itself."""

    __slots__ = ("clients",)

    @classmethod
    def of(cls, view: StepView, step_tokens: float) -> ClientGate:
        gate = super().of(view, step_tokens)
        assert isinstance(gate, ClientGate)
        gate.clients = {_clients[request.request_id] for request in view.running}
        return gate

    @property
    def room_blocks(self) -> int:
        return super().room_blocks - len(self.clients) * self._client_blocks

    def demand_blocks(self, request: RequestView) -> int:
        runs = _clients[request.request_id] in self.clients
        return super().demand_blocks(request) + (0 if runs else self._client_blocks)

    def admit(self, request: RequestView) -> None:
        super().admit(request)
        self.clients.add(_clients[request.request_id])

    @property
    def _client_blocks(self) -> int:
        return CLIENT_TOKENS // self.block_tokens


class ClientGatedPlanner(GatedPlanner):
    """A planner behind that gate."""

    gate_class = ClientGate


class IntervalPlanner:
    """A planner whose admissions are let through when the last one is `ADMISSION_STEPS` steps ago."""

    always = True

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._steps = 0  # since somebody was admitted

    def plan(self, view: StepView) -> StepPlan:
        plan = self._planner.plan(view)
        self._steps += 1
        if view.running and self._steps < ADMISSION_STEPS:
            plan.candidates = ()
        else:
            plan.candidates = self._watched(plan.candidates, view)
        return plan

    def reusable(self, work: StepWork, now_s: float, pending_s: float, last_output_s: float, steps: int) -> bool:
        """A step under an old plan is a step, too."""
        due = self._steps + 1 == ADMISSION_STEPS
        if due or not self._planner.reusable(work, now_s, pending_s, last_output_s, steps):
            return False
        self._steps += 1
        return True

    def _watched(self, candidates: Iterable[RequestView], view: StepView) -> Iterator[RequestView]:
        """The same candidates; the interval begins when one of them came in."""
        with contextlib.closing(_opened(candidates)) as opened:
            for request in opened:
                yield request
                if view.admitted_tokens(request):
                    self._steps = 0


def _opened(candidates: Iterable[RequestView]) -> Generator[RequestView, None, None]:
    """As a generator, so that closing it closes them."""
    yield from candidates


class PaperPreset(Preset):
    """A preset whose policies run on the paper's engine."""

    def make_planner(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> Planner:
        planner = self.planner(config, counters, predictor)
        assert isinstance(planner, BatchPlanner)
        return IntervalPlanner(ClientGatedPlanner(planner, planner.step_tokens))


class PaperDevice(LinearDevice):
    """A device on which the prompts of a step are computed in a step of their own, which reads all weights."""

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        seconds = super()._seconds(prefills, decodes, context_tokens, longest_tokens)
        if not prefills:
            return seconds
        prompts_s = self.prefill_s + self.prefill_token_s * sum(tokens for tokens, _ in prefills)
        return seconds + max(0.0, self.decode_s - prompts_s)


class RejoiningOrder(LeastServed):
    """The client with the smallest counter next, also among requests that lost their memory."""

    def __call__(self, view: StepView) -> Generator[RequestView, None, None]:
        outstanding: dict[ClientKey, float] = dict(Groups.of(view.running).promised(self._counters))

        def counter(request: RequestView) -> float:
            return self._counters.value(request.key) + outstanding.get(request.key, 0.0)

        back = list(view.waiting.resuming(Lane.ONLINE))
        with contextlib.closing(view.waiting.walk(Lane.ONLINE, dict(outstanding), ())) as walk:
            new = next(walk, None)
            while back or new is not None:
                first = min(back, key=counter, default=None)
                if first is not None and (new is None or counter(first) <= counter(new)):
                    back.remove(first)
                    yield first
                elif new is not None:
                    self._counters.add_promise(outstanding, new, new.missing_tokens)
                    yield new
                    new = next(walk, None)


class RejoiningPlanner(BatchPlanner):
    """VTC in that order."""

    def __init__(self, config: HybridConfig, counters: VirtualCounters, predictor: StepTimePredictor) -> None:
        super().__init__(RejoiningOrder(counters))


_PUBLISHED = dict(PRESETS)


def use_paper_engine(preset: str, requests: Iterable[SimRequest]) -> None:
    """Schedulers that this process makes with `preset` from now on run on the paper's engine, to serve `requests`."""
    global _clients
    _clients = {request.request_id: request.client for request in requests}
    given = _PUBLISHED[preset]
    PRESETS[preset] = PaperPreset(**{field.name: getattr(given, field.name) for field in fields(Preset)})


def use_own_engine(preset: str) -> None:
    """They run as they are again."""
    PRESETS[preset] = _PUBLISHED[preset]


def use_free_engine(preset: str) -> None:
    """They run without a gate, in the order of VTC for everybody who waits."""
    PRESETS[preset] = replace(_PUBLISHED[preset], planner=RejoiningPlanner)


def paper_settings(pool_tokens: int, max_seqs: int, max_model_len: int) -> EngineSettings:
    """Memory in tokens, and prompts of up to a sixth of the pool at a time."""
    step_tokens = max(pool_tokens // 6, _LEAST_BATCH_TOKENS)
    return EngineSettings(max_seqs=max_seqs, step_tokens=step_tokens, max_model_len=max_model_len, block_size=1)


def paper_device(device: Device) -> PaperDevice:
    """The same figures on the paper's engine."""
    return PaperDevice.model_validate(device.model_dump(by_alias=True))


def as_a_real_one(device: PaperDevice) -> PaperDevice:
    """With the engine's own seconds in a decode step, and step times that scatter."""
    return device.model_copy(update={"decode_s": device.decode_s + ENGINE_S, "noise_ratio": NOISE_RATIO})


def as_they_arrive(requests: Sequence[SimRequest], seed: int) -> list[SimRequest]:
    """The same requests up to `ARRIVAL_S` later each: what is sent together arrives in some order."""
    draw = random.Random(seed)
    late = (replace(request, arrival_s=request.arrival_s + draw.uniform(0.0, ARRIVAL_S)) for request in requests)
    return sorted(late, key=lambda request: request.arrival_s)
