"""What a step costs on a device: the kinds of step-time model that are formulas.

Every kind answers one question, `batch_seconds`, from figures that a caller can keep up to date in O(1) per step: the
prefill chunks, and of the decodes their number, their summed context and the longest context. The schema of the data
files is these classes: a field is documented where it is declared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Chunk = tuple[int, int]
"""A prefill chunk: tokens in this step, tokens computed before."""


HalfForm = Literal["hidden", "projected", "fp8"]
"""hidden: read absorbed. projected: hidden states, K and V made anew in every step. fp8: half the bytes."""


class HalfWork(NamedTuple):
    """What requests of a half form add to a step; the rest of the step is KV's."""

    form: HalfForm

    rows: int
    """Decodes."""

    context_tokens: int
    """Context of the decodes."""

    chunk_context_tokens: int
    """Tokens computed before the prefill chunks."""

    moved_tokens: int = 0
    """Context of a request that is moved to KV before the step."""


_MUCH_CONTEXT = 20_000


@dataclass(frozen=True, slots=True)
class HalfCost:
    """What a device's model says where an engine would have measured."""

    device: Device
    form: HalfForm

    def half_extra_s(self, rows: int, context_tokens: int) -> float:
        """Seconds that decodes over so many tokens of context take more per step than in KV, beside much more context:
        what is read and computed per token, not what is once per step or hides behind the weights."""
        return self._more_s(_MUCH_CONTEXT + context_tokens) - self._more_s(_MUCH_CONTEXT)

    def _more_s(self, context_tokens: int) -> float:
        half = HalfWork(self.form, 1, context_tokens, 0)
        in_half = self.device.batch_seconds((), 1, 0, context_tokens, half)
        return in_half - self.device.batch_seconds((), 1, context_tokens, context_tokens)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Device(BaseModel):
    """A GPU (or several, as one) that serves one model. Seconds are GPU time: no CPU, no HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = Field(alias="schema", description="version of this format")
    name: str = Field(min_length=1, description="how reports call it")
    kv_tokens: int = Field(gt=0, description="tokens that the KV pool holds")
    request_overhead_s: NotNegative = Field(
        0.0, description="constant per request outside the engine (HTTP, tokenizer), added to its delivery times"
    )
    noise_ratio: NotNegative = Field(0.0, description="standard deviation of real / modelled step time")
    source: str = Field(min_length=1, description="where the figures come from")
    licence: str = Field(min_length=1, description="under which licence")
    notes: str = Field("", description="what to know before using it")

    def step_seconds(self, prefills: Sequence[Chunk], decodes: Sequence[int], half: HalfWork | None = None) -> float:
        """Seconds of one step. decodes: context length of each, the new token included."""
        return self.batch_seconds(prefills, len(decodes), sum(decodes), max(decodes, default=0), half)

    def batch_seconds(
        self,
        prefills: Sequence[Chunk],
        decodes: int,
        context_tokens: int,
        longest_tokens: int,
        half: HalfWork | None = None,
    ) -> float:
        """The same from sums. half: the part of it that is of a half form; `prefills` and `decodes` include it,
        `context_tokens` does not."""
        if not prefills and not decodes:
            return 0.0
        if half is not None:
            raise ValueError(f"device {self.name}: {self.no_half_form(half.form)}")
        return self._seconds(prefills, decodes, context_tokens, longest_tokens)

    @property
    def half_forms(self) -> Sequence[str]:
        """Forms of the cache beside KV whose cost is known."""
        return ()

    def no_half_form(self, form: str) -> str:
        """Why a form cannot be simulated."""
        known = ", ".join(self.half_forms) or "none, only kind roofline knows"
        return f"the cost of the cache form {form} is not known (known here: {known})"

    @abstractmethod
    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        """Seconds of a step that is not empty."""


def query_key_pairs(prefills: Sequence[Chunk]) -> float:
    """Pairs that causal attention computes for the chunks."""
    return sum(tokens * (done + tokens / 2) for tokens, done in prefills)


class LinearDevice(Device):
    """An engine that was measured in prefill-only and decode-only steps. A mixed step costs the sum of both."""

    kind: Literal["linear"]
    prefill_s: NotNegative = Field(description="constant of the prefill part")
    prefill_token_s: NotNegative = Field(description="per prefill token")
    decode_s: NotNegative = Field(description="constant of the decode part")
    decode_sequence_s: NotNegative = Field(description="per decoding sequence")
    decode_context_token_s: NotNegative = Field(description="per KV token that decodes read")

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        seconds = 0.0
        if prefills:
            seconds += self.prefill_s + self.prefill_token_s * sum(tokens for tokens, _ in prefills)
        if decodes:
            seconds += self.decode_s + self.decode_sequence_s * decodes + self.decode_context_token_s * context_tokens
        return seconds


class HiddenCost(BaseModel):
    """What context costs that is kept as hidden states. `vllm_hybrid.cache.cost` derives the figures of an absorbed
    read; without them there is only the projection to K and V in every step."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes_per_token: Positive = Field(description="kept, all layers")
    token_equivalents: NotNegative = Field(description="new tokens whose dense work equals projecting one to K and V")
    absorbed_bytes_per_token: Positive | None = Field(None, description="moved by an absorbed read, all layers")
    absorbed_flops_per_token: Positive | None = Field(None, description="of an absorbed read, all layers")
    absorbed_step_bytes: NotNegative = Field(0.0, description="once per step with any row of the form")
    absorbed_row_flops: NotNegative = Field(0.0, description="per decode of the form")

    @model_validator(mode="after")
    def _absorbed_figures_come_together(self) -> HiddenCost:
        if (self.absorbed_bytes_per_token is None) != (self.absorbed_flops_per_token is None):
            raise ValueError("absorbed_bytes_per_token and absorbed_flops_per_token: give both or none")
        return self


class RooflineDevice(Device):
    """Weights and arithmetic overlap, attention and KV reads come on top, each at a fraction of the hardware's peak."""

    kind: Literal["roofline"]
    constant_s: NotNegative = Field(description="per step, whatever it computes")
    parameters: Positive = Field(description="of the model")
    layers: int = Field(gt=0)
    attention_width: int = Field(gt=0, description="query heads times head size")
    weight_bytes: Positive
    kv_bytes_per_token: Positive = Field(description="all layers")
    peak_bytes_per_s: Positive = Field(description="memory bandwidth, all GPUs together")
    peak_flops: Positive = Field(description="dense, all GPUs together")
    weight_efficiency: Share
    dense_efficiency: Share
    attention_efficiency: Share
    kv_efficiency: Share
    tile_tokens: int = Field(1, gt=0, description="dense work is done for the next multiple of so many tokens")
    hidden: HiddenCost | None = Field(None, description="only for engines that keep hidden states")

    def batch_seconds(
        self,
        prefills: Sequence[Chunk],
        decodes: int,
        context_tokens: int,
        longest_tokens: int,
        half: HalfWork | None = None,
    ) -> float:
        if half is None or half.form not in self.half_forms:
            return super().batch_seconds(prefills, decodes, context_tokens, longest_tokens, half)
        return self._roofline_s(prefills, decodes, context_tokens, *self._half(half))

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        return self._roofline_s(prefills, decodes, context_tokens, 0.0, 0.0)

    def _roofline_s(
        self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, projected_tokens: float, more_s: float
    ) -> float:
        """projected_tokens: dense work beside that for new tokens. more_s: seconds beside reading KV."""
        tokens: float = -(-(decodes + sum(n for n, _ in prefills)) // self.tile_tokens) * self.tile_tokens
        context_tokens += sum(done for _, done in prefills)
        tokens += projected_tokens
        read_s = self._read_s(self.kv_bytes_per_token * context_tokens) + more_s
        weights_s = self.weight_bytes / (self.peak_bytes_per_s * self.weight_efficiency)
        dense_s = 2 * self.parameters * tokens / (self.peak_flops * self.dense_efficiency)
        seconds = self.constant_s + max(weights_s, dense_s) + read_s
        if prefills:
            seconds += self._attention_s(4 * self.layers * self.attention_width * query_key_pairs(prefills))
        return seconds

    @property
    def half_forms(self) -> Sequence[str]:
        if self.hidden is None:
            return ("fp8",)
        return ("fp8", "projected") if self.hidden.absorbed_bytes_per_token is None else ("fp8", "projected", "hidden")

    def _half(self, half: HalfWork) -> tuple[float, float]:
        """Dense work in tokens, and seconds of attention beside those of a step whose chunks have KV before them."""
        chunks, context, moved = half.chunk_context_tokens, half.context_tokens, half.moved_tokens
        if half.form == "fp8":
            return 0.0, self._read_s(self.kv_bytes_per_token * ((context - chunks) / 2 + 1.5 * moved))
        hidden = self.hidden
        assert hidden is not None
        # A chunk's context is projected whatever the form: the KV that the step was charged for is made here.
        more_s = self._read_s((hidden.bytes_per_token - self.kv_bytes_per_token) * chunks)
        more_s += self._read_s((hidden.bytes_per_token + self.kv_bytes_per_token) * moved)
        chunks += moved
        if half.form == "projected":
            more_s += self._read_s(hidden.bytes_per_token * context)
            return hidden.token_equivalents * (context + chunks), more_s
        assert hidden.absorbed_bytes_per_token is not None and hidden.absorbed_flops_per_token is not None
        read_s = self._read_s(hidden.absorbed_bytes_per_token * context)
        more_s += max(read_s, self._attention_s(hidden.absorbed_flops_per_token * context))
        if half.rows:
            weights_s = hidden.absorbed_step_bytes / (self.peak_bytes_per_s * self.weight_efficiency)
            flops_s = hidden.absorbed_row_flops * half.rows / (self.peak_flops * self.dense_efficiency)
            more_s += max(weights_s, flops_s)
        return hidden.token_equivalents * chunks, more_s

    def _read_s(self, size: float) -> float:
        return size / (self.peak_bytes_per_s * self.kv_efficiency)

    def _attention_s(self, flops: float) -> float:
        return flops / (self.peak_flops * self.attention_efficiency)


class Regime(BaseModel):
    """One linear regime of `TwoRegimeDevice`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    constant_s: Finite
    token_s: Finite = Field(description="per token, of whatever kind")
    prefill_token_s: Finite
    decode_s: Finite = Field(description="per decoding sequence")
    decode_context_token_s: Finite
    prefill_context_token_s: Finite = Field(description="per token computed before a chunk")

    def seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int) -> float:
        """Seconds of a step in this regime."""
        tokens = sum(n for n, _ in prefills)
        return (
            self.constant_s
            + self.token_s * (tokens + decodes)
            + self.prefill_token_s * tokens
            + self.decode_s * decodes
            + self.decode_context_token_s * context_tokens
            + self.prefill_context_token_s * sum(done for _, done in prefills)
        )


class TwoRegimeDevice(Device):
    """Linear below and above a number of tokens per step (memory-bound, compute-bound); not continuous between."""

    kind: Literal["two_regime"]
    boundary_tokens: int = Field(gt=0, description="the last number of tokens in the lower regime")
    lower: Regime
    upper: Regime

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        tokens = decodes + sum(n for n, _ in prefills)
        regime = self.lower if tokens <= self.boundary_tokens else self.upper
        return max(0.0, regime.seconds(prefills, decodes, context_tokens))


class StepLinearDevice(Device):
    """Linear in five figures of a step; what a live engine's steps are fitted to (`device_fit.py`)."""

    kind: Literal["step_linear"]
    constant_s: NotNegative
    decode_s: NotNegative = Field(description="per decoding sequence")
    prefill_token_s: NotNegative
    decode_context_token_s: NotNegative = Field(description="per KV token that decodes read")
    pair_s: NotNegative = Field(description="per query-key pair of prefill chunks")

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        seconds = self.constant_s + self.decode_s * decodes + self.decode_context_token_s * context_tokens
        if prefills:
            seconds += self.prefill_token_s * sum(n for n, _ in prefills) + self.pair_s * query_key_pairs(prefills)
        return seconds
