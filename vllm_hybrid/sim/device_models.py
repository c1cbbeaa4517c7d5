"""What a step costs on a device: the kinds of step-time model that are formulas.

Every kind answers one question, `batch_seconds`, from figures that a caller can keep up to date in O(1) per step: the
prefill chunks, and of the decodes their number, their summed context and the longest context. The schema of the data
files is these classes: a field is documented where it is declared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Chunk = tuple[int, int]
"""A prefill chunk: tokens in this step, tokens computed before."""

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

    def step_seconds(self, prefills: Sequence[Chunk], decodes: Sequence[int], hidden_tokens: int = 0) -> float:
        """Seconds of one step. decodes: context length of each, the new token included."""
        return self.batch_seconds(prefills, len(decodes), sum(decodes), max(decodes, default=0), hidden_tokens)

    def batch_seconds(
        self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int, hidden_tokens: int = 0
    ) -> float:
        """The same from sums. hidden_tokens: context kept as hidden states, beside `context_tokens` kept as KV."""
        if not prefills and not decodes:
            return 0.0
        if hidden_tokens:
            raise ValueError(f"device {self.name}: no cost of hidden states is known (field hidden, kind roofline)")
        return self._seconds(prefills, decodes, context_tokens, longest_tokens)

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
    """What context costs that is kept as hidden states: half the bytes, and a projection to KV in every step."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes_per_token: Positive = Field(description="all layers")
    token_equivalents: NotNegative = Field(description="new tokens whose dense work equals re-projecting one")


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
        self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int, hidden_tokens: int = 0
    ) -> float:
        if not hidden_tokens or self.hidden is None:
            return super().batch_seconds(prefills, decodes, context_tokens, longest_tokens, hidden_tokens)
        projected = self.hidden.token_equivalents * hidden_tokens
        read_bytes = self.hidden.bytes_per_token * hidden_tokens
        return self._roofline_s(prefills, decodes, context_tokens, projected, read_bytes)

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        return self._roofline_s(prefills, decodes, context_tokens, 0.0, 0.0)

    def _roofline_s(
        self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, projected: float, read_bytes: float
    ) -> float:
        tokens = -(-(decodes + sum(n for n, _ in prefills)) // self.tile_tokens) * self.tile_tokens
        weights_s = self.weight_bytes / (self.peak_bytes_per_s * self.weight_efficiency)
        dense_s = 2 * self.parameters * (tokens + projected) / (self.peak_flops * self.dense_efficiency)
        context_tokens += sum(done for _, done in prefills)
        kv_bytes = self.kv_bytes_per_token * context_tokens + read_bytes
        seconds = self.constant_s + max(weights_s, dense_s) + kv_bytes / (self.peak_bytes_per_s * self.kv_efficiency)
        if prefills:
            flops = 4 * self.layers * self.attention_width * query_key_pairs(prefills)
            seconds += flops / (self.peak_flops * self.attention_efficiency)
        return seconds


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
