"""Which half form a model and its deployment allow, and why not the others: decided once, at start.

`hidden` is exact and needs K and V to be affine in the layer's input, so that decode can absorb the projections; and
it needs hidden states to be at most half as large as K and V. `fp8` suits any model, but is lossy, so it must be asked
for by name. A form that was asked for by name and cannot be had is an error with the alternatives, never a silent
fallback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_hybrid.config import CacheMode

Form = Literal["kv", "hidden", "fp8"]


class CapabilityError(ValueError):
    """A form that was asked for cannot be had; the message is one line."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the decision depends on. Heads are those of one rank: under tensor parallelism x is whole on every rank."""

    hidden_size: int
    kv_heads: int
    head_size: int
    element_bytes: int = 2
    """Of a hidden state."""

    kv_element_bytes: int = 2
    plain_attention: bool = True
    """All layers full attention with one KV cache group: no sliding window, no latent attention, no state space."""

    backend: bool = True
    """There is an attention backend of ours for the device."""

    other_attention: str = ""
    """The attention backend that was named, if ours does not stand on it."""

    full_graphs: str = ""
    """The CUDA graph mode, if attention would be captured in every graph."""

    block_tokens: int = 16

    affine_unknown: str = ""
    """The architecture, if its attention was not read: whether K is affine in the layer's input is not known."""

    rotary: bool = False
    key_norm: bool = False
    clipped_qkv: bool = False
    tensor_parallel: int = 1
    lora: bool = False
    kv_connector: bool = False
    speculative: bool = False
    context_parallel: int = 1

    @property
    def hidden_ratio(self) -> float:
        """Bytes of K and V over bytes of a hidden state."""
        return 2 * self.kv_heads * self.head_size * self.kv_element_bytes / (self.hidden_size * self.element_bytes)


@dataclass(frozen=True, slots=True)
class Decision:
    form: Form
    """Besides KV; `kv` is none besides."""

    halves: int
    """R: half blocks per physical block; 1 where there is none."""

    reason: str

    def __str__(self) -> str:
        if self.form == "kv":
            return f"cache: KV only ({self.reason})"
        return f"cache: KV and {self.form}, {self.halves} half blocks per block ({self.reason})"


def against_half_blocks(model: Deployment) -> list[str]:
    """Why no half form works here at all."""
    reasons = {
        "there is an attention backend for CPUs and NVIDIA GPUs only": not model.backend,
        f"it builds on the attention backend TRITON_ATTN, and {model.other_attention} was named": (
            bool(model.other_attention)
        ),
        f"CUDA graphs of whole steps (cudagraph_mode {model.full_graphs}): what a step does depends on its rows; "
        "choose PIECEWISE or NONE": bool(model.full_graphs),
        f"blocks of {model.block_tokens} tokens: whole multiples of 16 are needed": model.block_tokens % 16 != 0,
        "not every layer is plain full attention": not model.plain_attention,
        "a KV connector takes block ids for physical ones": model.kv_connector,
        "speculative decoding: the drafter shares the block table, but not the form": model.speculative,
        f"context parallelism ({model.context_parallel}) shards KV by token": model.context_parallel > 1,
    }
    return [reason for reason, holds in reasons.items() if holds]


def against_hidden(model: Deployment) -> list[str]:
    """Why hidden states cannot stand for K and V."""
    ratio = model.hidden_ratio
    reasons = {
        "keys are rotated (RoPE), so they are not affine in the hidden state": model.rotary,
        f"keys of {model.affine_unknown} are not known to be affine in the hidden state": (
            bool(model.affine_unknown) and not model.rotary
        ),
        "keys are normalised": model.key_norm,
        "the QKV projection is clipped": model.clipped_qkv,
        f"tensor parallelism ({model.tensor_parallel}): every rank would keep the whole hidden state": (
            model.tensor_parallel > 1
        ),
        "LoRA may change the QKV projection per request": model.lora,
        f"a token's K and V are only {ratio:.2g} times as large as its hidden state, 2 are needed": ratio < 2,
    }
    return against_half_blocks(model) + [reason for reason, holds in reasons.items() if holds]


def against_fp8(model: Deployment) -> list[str]:
    """Why K and V cannot be kept in eight bits."""
    reasons = {
        f"K and V have {model.kv_element_bytes} byte per element already": model.kv_element_bytes < 2,
        f"heads of {model.head_size} numbers: whole multiples of 16 are needed": model.head_size % 16 != 0,
    }
    return against_half_blocks(model) + [reason for reason, holds in reasons.items() if holds]


def decide(mode: CacheMode, model: Deployment) -> Decision:
    """The form beside KV. `auto` takes hidden where it is exact, else none."""
    if mode == "off":
        return Decision("kv", 1, "switched off")
    hidden, fp8 = against_hidden(model), against_fp8(model)
    if mode == "hidden" and hidden:
        raise CapabilityError(_refused("hidden", hidden, other="fp8" if not fp8 else None))
    if mode == "fp8" and fp8:
        raise CapabilityError(_refused("fp8", fp8, other="hidden" if not hidden else None))
    if mode == "fp8":
        return Decision("fp8", model.kv_element_bytes, "lossy, asked for")
    if not hidden:
        return Decision("hidden", int(model.hidden_ratio), "exact")
    return Decision("kv", 1, f"hidden: {'; '.join(hidden)}; fp8: {'; '.join(fp8) or 'lossy, so it must be named'}")


def _refused(form: str, reasons: list[str], other: str | None) -> str:
    alternatives = ["auto", "off", *([f"{other}{' (lossy)' if other == 'fp8' else ''}"] if other else [])]
    return f"cache: {form} is not possible here: {'; '.join(reasons)}. Choose one of {', '.join(alternatives)}"
