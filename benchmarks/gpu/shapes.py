"""Shapes of the dense decoders that are measured, and the least a kernel must move and compute at them.

Weights are random: a step's time depends on shapes only. `absorbable` says that K is affine in the layer's input (no
rotary embedding, no norm on K), so that the hidden form is exact and fast there.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2  # bf16


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int
    gated: bool = True
    absorbable: bool = False
    max_context: int = 8192

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of K and V per token of context in one layer."""
        return 2 * self.kv_heads * self.head_size * BYTES

    @property
    def layer_weights(self) -> int:
        up = 2 if self.gated else 1
        return self.hidden * (self.qkv_width + self.heads * self.head_size + (up + 1) * self.ffn)

    @property
    def weight_bytes(self) -> int:
        """The whole model with the output head, the input embedding not counted a second time."""
        return BYTES * (self.layers * self.layer_weights + self.hidden * self.vocab)


MODELS = {
    shape.name: shape
    for shape in (
        Shape("opt-6.7b", 4096, 32, 32, 32, 128, 16384, 50272, gated=False, absorbable=True, max_context=2048),
        Shape("opt-13b", 5120, 40, 40, 40, 128, 20480, 50272, gated=False, absorbable=True, max_context=2048),
        Shape("llama-2-7b", 4096, 32, 32, 32, 128, 11008, 32000),
        Shape("llama-2-13b", 5120, 40, 40, 40, 128, 13824, 32000),
        Shape("llama-3-8b", 4096, 32, 32, 8, 128, 14336, 128256),
        Shape("qwen3-8b", 4096, 36, 32, 8, 128, 12288, 151936),
        Shape("tiny", 64, 2, 4, 4, 16, 128, 100, gated=False, absorbable=True, max_context=256),
    )
}
