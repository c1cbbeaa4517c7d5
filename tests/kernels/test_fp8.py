"""The fp8 half form: what is read is what was written, as nearly as eight bits allow; decodes and ragged reads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.batch import KV_ROW, LENGTHS, make_batch, make_cache, raw_bytes
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.fp8 import fp8_decode, fp8_read, fp8_write, turn_order, turned, turned_back
from vllm_hybrid.cache.kernels.view import FP8, fp8_view

# layout, heads, bs, head size, query heads per head: 48 and 80 are no powers of two.
SHAPES = [("LBNHC", 2, 16, 32, 3), ("BLHNC", 3, 8, 16, 1), ("LBHNC", 2, 16, 80, 2), ("BLNHC", 1, 8, 48, 17)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def written(layout: str, heads: int, block_tokens: int, head_size: int, dtype: torch.dtype):
    torch.manual_seed(0)
    cache = make_cache(layout, heads, block_tokens, head_size, dtype)
    view = fp8_view(cache)
    batch = make_batch(view)
    slots = batch.slots(view)
    qkv = torch.randn(len(slots) + 2, 3 * heads, head_size)
    qkv[:, :, 1] *= 20  # a channel that stands out, as K's do
    _, key, value = (qkv * 10 ** torch.linspace(-3, 2, qkv.shape[0])[:, None, None]).to(dtype).chunk(3, dim=1)
    return cache, view, batch, slots, key, value


@pytest.mark.parametrize(("layout", "heads", "block_tokens", "head_size", "group"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_write_and_read_equal_the_reference(layout, heads, block_tokens, head_size, group, dtype) -> None:
    cache, view, batch, slots, key, value = written(layout, heads, block_tokens, head_size, dtype)
    before = raw_bytes(cache).clone()
    fp8_write(key, value, view, slots)
    by_kernel = raw_bytes(cache).clone()
    raw_bytes(cache).copy_(before)
    reference.fp8_write(key, value, view, slots)
    # Sums of turned vectors may round otherwise, so a number may be one step away; nothing else is touched.
    apart = (by_kernel.view(torch.int8).int() - raw_bytes(cache).view(torch.int8).int()).abs()
    assert float((apart > 0).float().mean()) < 0.02
    starts, table = batch.starts(), batch.half_table()
    got = fp8_read(view, table, starts, int(starts[-1]), 64, head_size, dtype)
    want = reference.fp8_read(view, table, starts, head_size, dtype)
    assert torch.allclose(got, want, rtol=2 * torch.finfo(dtype).eps)  # the interpreter cuts off, torch rounds
    back = turned_back(got.float().unflatten(-1, (2, head_size)))
    meant = torch.stack([key, value], 2)[: len(back)].float()
    error = (back - meant).norm(dim=-1) / meant.norm(dim=-1)
    assert float(error.max()) < 0.03 and float(error.mean()) < 0.015


@pytest.mark.parametrize(
    ("dtype", "parts", "alibi"), [(torch.bfloat16, 1, False), (torch.float16, 3, True), (torch.float32, 2, False)]
)
@pytest.mark.parametrize(("layout", "heads", "block_tokens", "head_size", "group"), SHAPES)
def test_decode_is_attention_over_what_is_read(
    layout, heads, block_tokens, head_size, group, alibi, parts, dtype
) -> None:
    _, view, batch, slots, _, _ = written(layout, heads, block_tokens, head_size, dtype)
    key, value = torch.randn(2, len(slots), heads, head_size).to(dtype)
    fp8_write(key, value, view, slots)
    slopes = torch.rand(heads * group) * 0.1 if alibi else None
    query = torch.randn(len(batch.table), heads * group, head_size).to(dtype)
    scale = head_size**-0.5
    asked = turned_back(query.float()).to(dtype)
    got = turned_back(fp8_decode(asked, view, batch.table, batch.seq_lens, scale, parts, slopes))
    for row, length in LENGTHS.items():
        if length == 0:
            continue
        held = reference.fp8_decoded(
            reference.row_tokens(view, batch.table[row], length).unflatten(1, (heads, 2, head_size))
        )
        k, v = turned_back(held).unbind(2)
        want = reference.kv_decode(query[row], k, v, scale, slopes)
        assert float((got[row] - want).abs().max()) <= TOLERANCE[dtype] * 3, row
    assert batch.table[KV_ROW, 0] < view.num_blocks  # it is not read at all: its seq_len would reach garbage


@settings(deadline=None, max_examples=200)
@given(
    head_size=st.sampled_from([16, 32, 48, 80, 128]),
    size=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**16),
    alike=st.booleans(),
)
def test_every_vector_comes_back_within_what_a_step_allows(head_size: int, size: float, seed: int, alike: bool) -> None:
    torch.manual_seed(seed)
    x = size * (torch.ones(3, head_size) if alike else torch.randn(3, head_size) * torch.rand(3, head_size) ** 4)
    stored = reference.fp8_encoded(x)
    assert stored.dtype == FP8 and int(stored.min()) >= -127
    decoded, meant = reference.fp8_decoded(stored), turned(x)
    step = meant.abs().amax(-1, keepdim=True) / 127
    # One step where a bit of the scale had to be met, half a step elsewhere; the scale itself is off by 2^-8 at most.
    assert float(((decoded - meant).abs() / step).max()) <= 1.6
    # Turning back keeps lengths, but for the order of T.
    error, most = (turned_back(decoded) - x).norm(dim=-1), 1.6 * step[:, 0] * head_size**0.5
    assert bool((error <= most / turn_order(head_size) ** 0.5).all())


def test_nothing_stays_nothing() -> None:
    assert not reference.fp8_decoded(reference.fp8_encoded(torch.zeros(2, 32))).any()
