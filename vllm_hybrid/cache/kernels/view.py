"""Where the half blocks of one layer lie: the one place that turns vLLM's cache tensor into addresses.

Half block `N + R*p + j` starts `p*block_stride + j*bs*w` elements into the layer. That needs every physical block to
be one dense run of memory; whether heads or tokens come first inside it does not matter, and neither does what lies
between two blocks, so layouts that interleave layers work as well. Layouts that scatter a block are refused here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FP8 = torch.int8
"""What `fp8.py` stores: whole numbers that share an exponent."""


@dataclass(frozen=True, slots=True)
class HalfBlockView:
    data: torch.Tensor
    """[all elements from the layer's first to its last] alias of the cache, in the dtype of a half block."""

    num_blocks: int
    """N"""

    block_tokens: int
    """bs"""

    ratio: int
    """R"""

    block_stride: int
    """Elements from one physical block to the next."""

    width: int
    """w"""

    @property
    def half_elements(self) -> int:
        return self.block_tokens * self.width

    def blocks(self) -> torch.Tensor:
        """[N, R, bs, w] alias: half block N + R*p + j is [p, j]."""
        strides = (self.block_stride, self.half_elements, self.width, 1)
        return self.data.as_strided((self.num_blocks, self.ratio, self.block_tokens, self.width), strides)


def hidden_view(kv_cache: torch.Tensor, hidden_size: int) -> HalfBlockView:
    """Half blocks of hidden states [H] in a layer's cache.

    kv_cache: [N, nkv, bs, 2*hd] of any strides that keep a block dense.
    """
    return _view(kv_cache, kv_cache.dtype, hidden_size)


def fp8_view(kv_cache: torch.Tensor) -> HalfBlockView:
    """Half blocks of K and V in bytes, one token as [nkv, K | V] of 2*nkv*hd; kv_cache as in `hidden_view`."""
    return _view(kv_cache, FP8, kv_cache.shape[1] * kv_cache.shape[3])


def _view(kv_cache: torch.Tensor, dtype: torch.dtype, width: int) -> HalfBlockView:
    num_blocks, _, block_tokens, _ = kv_cache.shape
    block_elements = kv_cache[0].numel()
    last = sum((size - 1) * stride for size, stride in zip(kv_cache.shape[1:], kv_cache.stride()[1:], strict=True))
    if last != block_elements - 1 or kv_cache.stride(0) < block_elements:
        raise ValueError(f"a block is not one dense run of memory: shape {tuple(kv_cache.shape)}, {kv_cache.stride()}")
    finer = kv_cache.element_size() // dtype.itemsize
    ratio = block_elements * finer // (block_tokens * width)
    if ratio < 2:
        raise ValueError(f"a block of {block_elements * finer} elements holds {ratio} half blocks of width {width}")
    extent = (num_blocks - 1) * kv_cache.stride(0) + block_elements
    data = kv_cache.as_strided((extent,), (1,)).view(dtype)
    return HalfBlockView(data, num_blocks, block_tokens, ratio, kv_cache.stride(0) * finer, width)


@triton.jit
def half_block_offset(block_ids, num_blocks, block_stride, BS: tl.constexpr, W: tl.constexpr, R: tl.constexpr):
    """Offset of the first element of half blocks by their virtual ids, any shape."""
    half = block_ids.to(tl.int64) - num_blocks
    return (half // R) * block_stride + (half % R) * (BS * W)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, whose `tl.dot` is wrong for bf16: operands are widened there."""
    return bool(triton.knobs.runtime.interpret)
