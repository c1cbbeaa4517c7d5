"""The fp8 half form: rounding and clipping bit for bit, and reads of ragged rows."""

import pytest
import torch

from tests.kernels.batch import make_batch, make_cache, raw_bytes
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.fp8 import fp8_read, fp8_write
from vllm_hybrid.cache.kernels.view import FP8, fp8_view

SCALES = 0.5, 0.25


def _unsigned_zero(stored: torch.Tensor) -> torch.Tensor:
    """The kernel makes +0 of what rounds to zero from below, torch -0: the same number."""
    return stored.where(stored != 0x80, 0)


@pytest.mark.parametrize("layout", ["LBNHC", "BLHNC"])
@pytest.mark.parametrize(("heads", "block_tokens", "head_size"), [(2, 16, 32), (3, 8, 16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_write_and_read_equal_the_reference(
    layout: str, heads: int, block_tokens: int, head_size: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    cache = make_cache(layout, heads, block_tokens, head_size, dtype)
    view = fp8_view(cache)
    batch = make_batch(view)
    slots = batch.slots(view)
    qkv = torch.randn(len(slots) + 2, 3 * heads, head_size)
    _, key, value = (qkv * 10 ** torch.linspace(-4, 3, qkv.shape[0])[:, None, None]).to(dtype).chunk(3, dim=1)
    before = raw_bytes(cache).clone()
    fp8_write(key, value, view, slots, *SCALES)
    written = raw_bytes(cache).clone()
    raw_bytes(cache).copy_(before)
    reference.fp8_write(key, value, view, slots, *SCALES)
    assert torch.equal(_unsigned_zero(written), _unsigned_zero(raw_bytes(cache)))
    starts = batch.starts()
    got = fp8_read(view, batch.half_table(), starts, int(starts[-1]), 64, head_size, dtype, *SCALES)
    assert torch.equal(got, reference.fp8_read(view, batch.half_table(), starts, head_size, dtype, *SCALES))
    assert bool(got.isfinite().all())


def test_every_number_of_e4m3_and_every_tie_between_two_is_rounded_as_torch_does() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    numbers = numbers[numbers.isfinite()].sort().values
    ties = (numbers[1:] + numbers[:-1]) / 2
    values = torch.cat([numbers, ties, ties * 1.001, ties * 0.999, torch.tensor([460.0, 1e9, -1e9, 1e-30])])
    values = torch.cat([values, torch.zeros(-len(values) % 32)]).view(-1, 1, 32)
    cache = torch.zeros(9, 1, 32, 64, dtype=torch.bfloat16)
    view = fp8_view(cache)
    slots = 9 * 32 + 64 + torch.arange(len(values))
    fp8_write(values, -values, view, slots)
    stored = view.blocks()[1, 0, : len(values)].float()
    want = values.clamp(-448, 448).to(FP8).float().flatten(1)
    assert torch.equal(stored, torch.cat([want, -want], 1))
