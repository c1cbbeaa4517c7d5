"""Write this step's hidden states into the half blocks: the counterpart of vLLM's `reshape_and_cache`.

One program per token. Slots below N*bs belong to KV blocks and -1 is padding; both are left to vLLM's own write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vllm_hybrid.cache.kernels.view import HalfBlockView, half_block_offset


@triton.jit
def _hidden_write_kernel(
    x, x_stride, cache, slots, num_blocks, block_stride,
    BS: tl.constexpr, H: tl.constexpr, R: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < num_blocks * BS:
        return
    to = half_block_offset(slot // BS, num_blocks, block_stride, BS, H, R) + (slot % BS) * H
    for begin in range(0, H, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)
        value = tl.load(x + token * x_stride + column, mask=column < H)
        tl.store(cache + to + column, value.to(cache.dtype.element_ty), mask=column < H)


def hidden_write(x: torch.Tensor, view: HalfBlockView, slots: torch.Tensor) -> None:
    """Store row t of x at slot t, where that slot is of the half form.

    x: [>= T, H] rows dense; slots: [T] int64, `virtual block id * bs + position in the block`, -1 for padding.
    """
    tokens = min(x.shape[0], slots.shape[0])
    if tokens == 0:
        return
    _hidden_write_kernel[(tokens,)](
        x, x.stride(0), view.data, slots, view.num_blocks, view.block_stride,
        BS=view.block_tokens, H=view.width, R=view.ratio, COLUMNS=min(2048, triton.next_power_of_2(view.width)),
    )  # fmt: skip
