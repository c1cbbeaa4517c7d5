"""Step times interpolated in measured kernel times.

A step is dense work (linear layers, norms, activations; by tokens) + per-sequence work (logits, sampling) + attention
per layer. Attention was measured either on batches that mix prefill and decode (`grid`: a formula times a measured
correction) or for both apart (`additive`: optimistic for mixed steps).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import exp, log, log2
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_hybrid.sim.device_models import Chunk, Device, Finite, NotNegative, Positive

Axis = Annotated[list[NotNegative], Field(min_length=1)]
LEAST_CHUNK_SHARE = (
    0.3  # of a whole prefill's time, by tokens: differences of two measured times can come out too small
)


def interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Linear between the points, constant beyond them."""
    if x <= xs[0]:
        return ys[0]
    if x >= xs[-1]:
        return ys[-1]
    i = bisect_right(xs, x) - 1
    weight = (x - xs[i]) / (xs[i + 1] - xs[i])
    return ys[i] + weight * (ys[i + 1] - ys[i])


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Curve(_Part):
    """Microseconds over one axis."""

    at: Axis = Field(description="increasing")
    us: Axis

    @model_validator(mode="after")
    def _same_points(self) -> Curve:
        if len(self.at) != len(self.us):
            raise ValueError(f"at has {len(self.at)} points and us {len(self.us)}")
        if any(a >= b for a, b in pairwise(self.at)):
            raise ValueError("at must increase")
        return self

    def __call__(self, x: float) -> float:
        return interpolate(x, self.at, self.us)

    def proportional(self, x: float) -> float:
        """Beyond the last point the time grows with x."""
        return self.us[-1] * x / self.at[-1] if x > self.at[-1] else interpolate(x, self.at, self.us)


class GridAttention(_Part):
    """Attention of mixed batches: `formula` times `ratio`, interpolated in log2 of four axes.

    The axes are prefill tokens, tokens before them, decodes, mean decode context. formula: coefficients of 1,
    [prefill], prefill tokens, their pairs, [prefill] * keys, decodes, decodes * context.
    """

    kind: Literal["grid"]
    axes: Annotated[list[Axis], Field(min_length=4, max_length=4)]
    formula: Annotated[list[Finite], Field(min_length=7, max_length=7)]
    ratio: list[NotNegative] = Field(description="the last axis runs fastest")
    skew: NotNegative = Field(description="how far towards the longest decode, away from the mean, time is read")

    @model_validator(mode="after")
    def _full_grid(self) -> GridAttention:
        points = 1
        for axis in self.axes:
            if len(axis) < 2:
                raise ValueError("every axis needs two points")
            points *= len(axis)
        if points != len(self.ratio):
            raise ValueError(f"ratio has {len(self.ratio)} values, the axes span {points}")
        return self

    @cached_property
    def _log_axes(self) -> list[tuple[list[float], int]]:
        """Every axis in log2 (-1 stands for zero) with its stride in `ratio`."""
        result, stride = [], 1
        for axis in reversed(self.axes):
            result.append(([-1.0 if v == 0 else log2(v) for v in axis], stride))
            stride *= len(axis)
        return result[::-1]

    def _at(self, prefill: float, before: float, decodes: int, context: float) -> float:
        c, some = self.formula, prefill > 0
        formula_us = c[0] + c[5] * decodes + c[6] * decodes * context
        if some:
            pairs = prefill * (before + (prefill + 1) / 2)
            formula_us += c[1] + c[2] * prefill + c[3] * pairs + c[4] * (before + prefill)
        corners = [(0, 1.0)]
        for (axis, stride), x in zip(self._log_axes, (prefill, before, decodes, context), strict=True):
            z = min(max(-1.0 if x < 1 else log2(x), axis[0]), axis[-1])
            i = min(max(bisect_right(axis, z) - 1, 0), len(axis) - 2)
            w = (z - axis[i]) / (axis[i + 1] - axis[i])
            both = (((i, 1 - w), (i + 1, w)) if w < 1 else ((i + 1, 1.0),)) if w else ((i, 1.0),)
            corners = [(offset + k * stride, share * v) for offset, share in corners for k, v in both]
        ratio = self.ratio
        return formula_us * sum(ratio[offset] * share for offset, share in corners)

    def layer_us(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        """Microseconds of one layer's attention. The chunks count as one with the same query-key pairs."""
        tokens = sum(n for n, _ in prefills)
        before = 0.0
        if tokens:
            pairs = sum(n * (done + (n + 1) / 2) for n, done in prefills)
            before = max(pairs / tokens - (tokens + 1) / 2, 0.0)
        us = self._at(tokens, before, decodes, context_tokens / decodes if decodes else 0.0)
        if decodes > 1 and self.skew:
            us += self.skew * max(0.0, self._at(tokens, before, decodes, longest_tokens) - us)
        return us


class DecodeRow(_Part):
    """Decode attention of one batch size over the context length."""

    decodes: Positive = Field(description="may be a fraction: some batches stand for others with fewer KV heads")
    context: Curve


class AdditiveAttention(_Part):
    """Prefill and decode attention were measured apart; their sum stands for a mixed batch."""

    kind: Literal["additive"]
    prefill: Curve = Field(description="one whole prompt, by its length; between the points in log-log")
    decode: Annotated[list[DecodeRow], Field(min_length=1)]

    @cached_property
    def _log_prefill(self) -> tuple[list[float], list[float]]:
        return [log(v) for v in self.prefill.at], [log(v) for v in self.prefill.us]

    def _whole_us(self, tokens: int) -> float:
        last = self.prefill.at[-1]
        if tokens > last:
            return self.prefill.us[-1] * (tokens / last) ** 2
        return exp(interpolate(log(max(tokens, 1)), *self._log_prefill))

    def _chunk_us(self, tokens: int, done: int) -> float:
        whole = self._whole_us(done + tokens)
        if done == 0:
            return whole
        return max(whole - self._whole_us(done), LEAST_CHUNK_SHARE * whole * tokens / (done + tokens))

    @cached_property
    def _batch_sizes(self) -> list[float]:
        return [row.decodes for row in self.decode]

    def _decode_us(self, decodes: int, context: float) -> float:
        sizes, rows = self._batch_sizes, self.decode
        if decodes <= sizes[0]:
            return rows[0].context.proportional(context)
        if decodes >= sizes[-1]:
            return rows[-1].context.proportional(context) * decodes / sizes[-1]
        i = bisect_right(sizes, decodes) - 1
        weight = (decodes - sizes[i]) / (sizes[i + 1] - sizes[i])
        below, above = rows[i].context.proportional(context), rows[i + 1].context.proportional(context)
        return (1 - weight) * below + weight * above

    def layer_us(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        """Microseconds of one layer's attention."""
        us = self._decode_us(decodes, context_tokens / decodes) if decodes else 0.0
        return us + sum(self._chunk_us(tokens, done) for tokens, done in prefills)


class TableDevice(Device):
    """Kernel times measured on the device itself."""

    kind: Literal["table"]
    layers: int = Field(gt=0)
    dense: Curve = Field(description="all layers, by tokens in the step; proportional beyond the last point")
    sequences: Curve = Field(description="logits and sampling, by sequences in the step")
    attention: GridAttention | AdditiveAttention = Field(discriminator="kind", description="one layer")

    def _seconds(self, prefills: Sequence[Chunk], decodes: int, context_tokens: int, longest_tokens: int) -> float:
        tokens = decodes + sum(n for n, _ in prefills)
        layer_us = self.attention.layer_us(prefills, decodes, context_tokens, longest_tokens)
        us = self.dense.proportional(tokens) + self.sequences(decodes + len(prefills)) + self.layers * layer_us
        return us * 1e-6
