"""Half blocks of every layout that keeps a block dense, and a refusal of those that do not."""

import pytest
import torch

from tests.kernels.batch import NUM_BLOCKS, make_cache
from vllm_hybrid.cache.kernels.view import fp8_view, hidden_view


@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC", "BLNHC", "BLHNC"])
@pytest.mark.parametrize(("hidden_size", "ratio"), [(64, 2), (48, 2), (24, 5)])
def test_half_blocks_lie_inside_their_physical_block(layout: str, hidden_size: int, ratio: int) -> None:
    cache = make_cache(layout, heads=4, block_tokens=8, head_size=16, dtype=torch.float32)
    view = hidden_view(cache, hidden_size)
    assert view.ratio == ratio
    assert view.blocks().shape == (NUM_BLOCKS, ratio, 8, hidden_size)
    for block in range(NUM_BLOCKS):
        cache.zero_()
        view.blocks()[block] = 1
        assert cache[block].sum() == ratio * 8 * hidden_size == cache.sum()


def test_fp8_halves_fill_their_physical_block() -> None:
    cache = make_cache("BLNHC", heads=2, block_tokens=8, head_size=16, dtype=torch.bfloat16)
    view = fp8_view(cache)
    assert (view.ratio, view.width) == (2, 64)
    cache.zero_()
    view.blocks().view(torch.uint8)[3] = 0x11
    assert bool((cache[3].contiguous().view(torch.uint8) == 0x11).all()) and cache.count_nonzero() == cache[3].numel()


@pytest.mark.parametrize("layout", ["LHBNC", "BHLNC"])
def test_a_scattered_block_is_refused(layout: str) -> None:
    cache = make_cache(layout, heads=4, block_tokens=8, head_size=16, dtype=torch.float32)
    with pytest.raises(ValueError, match="not one dense run"):
        hidden_view(cache, 64)


def test_a_form_that_saves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 1 half blocks"):
        hidden_view(make_cache("LBNHC", heads=4, block_tokens=8, head_size=16, dtype=torch.float32), 96)
    with pytest.raises(ValueError, match="holds 1 half blocks"):
        fp8_view(make_cache("LBNHC", 4, 8, 16, torch.float8_e4m3fn))
