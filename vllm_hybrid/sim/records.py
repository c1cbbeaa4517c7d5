"""What goes into a simulation and what comes out of it. Nothing here needs vLLM."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class SimError(ValueError):
    """A simulation that cannot be run; the message is one line."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a workload.

    hash_ids: one id per `hash_block_tokens` of the prompt; prompts that start with equal ids share that prefix.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    client: str = "default"
    lane: str = "online"
    hash_ids: tuple[int, ...] = ()
    hash_block_tokens: int = 512
    priority: int = 0


@dataclass(frozen=True)
class EngineSettings:
    """The engine around the scheduler, in vLLM's terms.

    known_lengths: a request's max_tokens is the length of its answer. False: max_tokens is all that max_model_len
    leaves, as for chat requests that say nothing, and the answer ends when its last token says so.
    """

    max_seqs: int = 256
    step_tokens: int = 2048
    pool_tokens: int | None = None  # None: the device's
    block_size: int = 16
    max_model_len: int = 16384
    prefix_caching: bool = False
    async_mode: bool = False
    watermark: float = 0.0
    long_prefill_tokens: int = 0
    project_hidden: bool = False  # hidden states are made K and V anew in every step, as by Apt-Serve; else absorbed
    known_lengths: bool = True


@dataclass(frozen=True)
class Contender:
    """Who schedules. stock: vLLM's own class under "fcfs" or "priority"; None: our class with the settings `hybrid`.

    engine: what of `EngineSettings` this contender has otherwise than the others.
    """

    name: str
    stock: str | None = None
    hybrid: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RequestRecord:
    """What happened to a request. All times are virtual seconds."""

    request: SimRequest
    refused: bool = False
    token_s: array[float] = field(default_factory=lambda: array("d"))  # when each output token reached the client
    finished_s: float | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0  # computed again after a preemption
    scheduled_s: float | None = None  # when it was scheduled first
    cached_tokens: int = 0  # of the prompt, found in the prefix cache at first scheduling


@dataclass
class StepLog:
    """One entry per step that computed something."""

    start_s: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    predicted_s: array[float] = field(default_factory=lambda: array("d"))  # nan: not predicted
    prefill_tokens: array[int] = field(default_factory=lambda: array("l"))
    decodes: array[int] = field(default_factory=lambda: array("l"))

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass
class RunRecord:
    """One run. `wall_s` and `cpu_s` are the simulator's own; all else is the same in every run of the same input."""

    contender: Contender
    device: str
    settings: EngineSettings
    seed: int
    requests: list[RequestRecord] = field(default_factory=list)
    steps: StepLog = field(default_factory=StepLog)
    end_s: float = 0.0
    policy_errors: int = 0
    planned_steps: int = 0
    reused_steps: int = 0
    stock_steps: int = 0
    fallback_steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
