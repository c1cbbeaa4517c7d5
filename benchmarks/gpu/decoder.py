"""A dense decoder with random weights in plain torch: some of its layers, and its output head.

A few layers stand for all (they are alike); enough of them that their weights do not fit in the L2. Activations and
norms are torch's own kernels, one by one, where vLLM fuses them: the figures are a little above vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import Shape

MEASURED_LAYERS = 8
INIT_STD = 0.02


class Decoder:
    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.shape, self.device = shape, bench.device
        self.measured_layers = min(MEASURED_LAYERS, shape.layers)
        widths = {
            "qkv": (shape.qkv_width, shape.hidden),
            "out": (shape.hidden, shape.heads * shape.head_size),
            "up": (shape.ffn * (2 if shape.gated else 1), shape.hidden),
            "down": (shape.hidden, shape.ffn),
        }
        self.layers = [
            {name: self._weight(*size) for name, size in widths.items()} for _ in range(self.measured_layers)
        ]
        self.head = self._weight(shape.vocab, shape.hidden)
        self.norm_weight = torch.ones(shape.hidden, device=self.device, dtype=torch.bfloat16)

    def _weight(self, rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, device=self.device, dtype=torch.bfloat16).normal_(std=INIT_STD)

    def tokens(self, count: int) -> torch.Tensor:
        """Hidden states to start from [count, H]."""
        return torch.randn(count, self.shape.hidden, device=self.device, dtype=torch.bfloat16)

    def run(self, x: torch.Tensor, attention: Callable[[torch.Tensor, int], torch.Tensor] | None) -> torch.Tensor:
        """The measured layers; without `attention` only what is dense in them."""
        width = self.shape.heads * self.shape.head_size
        for index, layer in enumerate(self.layers):
            query = F.linear(self._norm(x), layer["qkv"])[:, :width]
            mixed = query if attention is None else attention(query.contiguous(), index)
            x = x + F.linear(mixed, layer["out"])
            x = x + F.linear(self._activation(F.linear(self._norm(x), layer["up"])), layer["down"])
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self._norm(x), self.head)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        normalised = F.rms_norm if self.shape.gated else F.layer_norm
        return normalised(x, (self.shape.hidden,), self.norm_weight)

    def _activation(self, up: torch.Tensor) -> torch.Tensor:
        if not self.shape.gated:
            return F.relu(up)
        gate, value = up.chunk(2, -1)
        return F.silu(gate) * value
