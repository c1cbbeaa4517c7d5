"""Does the cut-down vLLM compute right on this GPU? Its operators and FlashAttention 3 against torch in float32.

    python -m benchmarks.gpu.payload.smoke

Ends with 0 if all is right, 2 if only FlashAttention is wrong, 1 if the operators are wrong or do not load. A batch
with a row without keys is looked at too, since the hidden form hands such rows to FlashAttention; it is reported, not
counted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F

TOLERANCE = 2e-2  # bf16 inputs and outputs
HEAD_SHAPES = [(128, 40, 40), (128, 32, 8), (64, 12, 12)]
CONTEXTS, QUERIES = [1, 17, 300, 1000, 2047], [1, 5, 1, 64, 1]
BLOCK_TOKENS = 16


def bf16(*size: int) -> torch.Tensor:
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16)


def agree(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    right = error < TOLERANCE
    print(f"{'ok   ' if right else 'WRONG'} {name:28s} {error:.1e}", flush=True)
    if not right:
        raise AssertionError(name)


def operators() -> None:
    """Norms, activation and rotary embedding of vLLM's main library."""
    import vllm._custom_ops  # noqa: F401  (loads the library)

    ops = torch.ops._C
    x, weight, gate = bf16(64, 5120), bf16(5120), bf16(64, 10240)
    out = torch.full_like(x, float("nan"))
    ops.rms_norm(out, x, weight, 1e-5)
    agree("rms_norm", out, F.rms_norm(x.float(), (5120,), weight.float(), 1e-5))
    added, residual = x.clone(), bf16(64, 5120)
    total = (x + residual).float()
    ops.fused_add_rms_norm(added, residual, weight, 1e-5)
    agree("fused_add_rms_norm", added, F.rms_norm(total, (5120,), weight.float(), 1e-5))
    out = torch.full_like(x, float("nan"))
    ops.silu_and_mul(out, gate)
    agree("silu_and_mul", out, F.silu(gate[:, :5120].float()) * gate[:, 5120:].float())
    _rotary(ops)


def _rotary(ops) -> None:
    position = torch.arange(64, device="cuda")
    angle = torch.outer(position.float(), 10000 ** (-torch.arange(0, 128, 2, device="cuda") / 128))
    query, key = bf16(64, 40 * 128), bf16(64, 40 * 128)
    a, b = query.view(64, 40, 128).float().chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    want = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    table = torch.cat([angle.cos(), angle.sin()], -1).to(torch.bfloat16)
    ops.rotary_embedding(position, query, key, 128, table, True)
    agree("rotary_embedding", query.view(64, 40, 128), want)


def attention() -> None:
    """FlashAttention 3 on a paged cache with ragged rows, filled by vLLM's own write."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    for head_size, heads, kv_heads in HEAD_SHAPES:
        blocks = [-(-context // BLOCK_TOKENS) for context in CONTEXTS]
        cache = bf16(sum(blocks) + 1, BLOCK_TOKENS, kv_heads, 2 * head_size)
        key_cache, value_cache = cache.split(head_size, -1)
        ids = (torch.randperm(sum(blocks)) + 1).int().split(blocks)
        table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
        keys, values = [], []
        for row, context in enumerate(CONTEXTS):
            table[row, : blocks[row]] = ids[row]
            at = torch.arange(context)
            slots = (ids[row][at // BLOCK_TOKENS].long() * BLOCK_TOKENS + at % BLOCK_TOKENS).cuda()
            keys.append(bf16(context, kv_heads, head_size))
            values.append(bf16(context, kv_heads, head_size))
            one = torch.ones(1, device="cuda")
            write = torch.ops._C_cache_ops.reshape_and_cache_flash
            write(keys[-1], values[-1], key_cache, value_cache, slots, "auto", one, one)
        query = bf16(sum(QUERIES), heads, head_size)
        call = {
            "cu_seqlens_q": torch.tensor([0, *QUERIES]).cumsum(0).int().cuda(), "block_table": table.cuda(),
            "max_seqlen_q": max(QUERIES), "max_seqlen_k": max(CONTEXTS), "causal": True,
            "softmax_scale": head_size**-0.5, "fa_version": 3,
        }  # fmt: skip
        used = torch.tensor(CONTEXTS, dtype=torch.int32, device="cuda")
        out = flash_attn_varlen_func(query, key_cache, value_cache, seqused_k=used, **call)
        agree(f"flash attention {head_size} {heads}/{kv_heads}", out, expected(query, keys, values))
    used[1] = 0
    empty = flash_attn_varlen_func(query, key_cache, value_cache, seqused_k=used, **call)
    row = slice(QUERIES[0], QUERIES[0] + QUERIES[1])
    others = torch.ones(len(query), dtype=torch.bool)
    others[row] = False
    kept = "unchanged" if torch.equal(empty[others], out[others]) else "CHANGED"
    print(f"note  a row without keys: the other rows {kept}, its own at most {empty[row].abs().max()}")


def expected(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Causal attention of every row in float32."""
    outs, at = [], 0
    for key, value, tokens in zip(keys, values, QUERIES, strict=True):
        q = query[at : at + tokens].float().transpose(0, 1)
        groups = query.shape[1] // key.shape[1]
        k, v = (kv.float().repeat_interleave(groups, 1).transpose(0, 1) for kv in (key, value))
        last = torch.arange(len(key) - tokens, len(key), device=q.device)
        hidden = torch.arange(len(key), device=q.device)[None] > last[:, None]
        scores = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
        at += tokens
    return torch.cat(outs)


def holds(check: Callable[[], None]) -> bool:
    """Whether a check passes; what went wrong is printed."""
    try:
        check()
    except Exception:
        traceback.print_exc()
        return False
    return True


def main() -> int:
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    if not holds(operators):
        return 1
    return 0 if holds(attention) else 2


if __name__ == "__main__":
    sys.exit(main())
