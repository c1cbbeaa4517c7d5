"""Writes touch exactly the bytes of their tokens; a gather brings the same numbers back."""

import pytest
import torch

from tests.kernels.batch import make_batch, make_cache, raw_bytes
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.kernels.hidden_write import hidden_write
from vllm_hybrid.cache.kernels.project import gather_project, hidden_gather
from vllm_hybrid.cache.kernels.view import hidden_view

CASES = [
    # layout, heads, bs, head size, H, dtype
    ("LBNHC", 4, 16, 32, 128, torch.float32),
    ("LBHNC", 5, 16, 16, 80, torch.bfloat16),
    ("BLNHC", 4, 8, 64, 96, torch.float16),
    ("BLHNC", 4, 32, 32, 100, torch.bfloat16),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[-1])[6:]}-H{case[4]}")
def cache_and_view(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    layout, heads, block_tokens, head_size, hidden, dtype = request.param
    cache = make_cache(layout, heads, block_tokens, head_size, dtype)
    return cache, hidden_view(cache, hidden)


def test_write_equals_reference_in_every_byte_of_the_storage(cache_and_view) -> None:
    cache, view = cache_and_view
    batch = make_batch(view)
    slots = batch.slots(view)
    # A strided x, as the QKV input of a padded batch is, with more rows than there are slots.
    x = torch.randn(len(slots) + 3, view.width + 8).to(view.data.dtype)[:, : view.width]
    before = raw_bytes(cache).clone()
    hidden_write(x, view, slots)
    written = raw_bytes(cache).clone()
    raw_bytes(cache).copy_(before)
    reference.hidden_write(x, view, slots)
    assert torch.equal(written, raw_bytes(cache))
    assert not torch.equal(written, before)


def test_no_token_writes_nothing(cache_and_view) -> None:
    cache, view = cache_and_view
    before = raw_bytes(cache).clone()
    hidden_write(torch.ones(4, view.width, dtype=view.data.dtype), view, torch.tensor([-1, 0, 3, -1]))
    hidden_write(torch.ones(0, view.width, dtype=view.data.dtype), view, torch.tensor([], dtype=torch.int64))
    assert torch.equal(raw_bytes(cache), before)


def test_gather_returns_what_was_written(cache_and_view) -> None:
    _, view = cache_and_view
    batch = make_batch(view)
    slots = batch.slots(view)
    x = torch.randn(len(slots), view.width).to(view.data.dtype)
    hidden_write(x, view, slots)
    starts = batch.starts()
    total = int(starts[-1])
    # max_tokens may be larger than the longest row: the table's garbage tail must not be followed.
    got = hidden_gather(view, batch.half_table(), starts, total, max_tokens=64)
    assert torch.equal(got, x[:total])
    assert torch.equal(got, reference.gather(view, batch.half_table(), starts))
    assert hidden_gather(view, batch.half_table(), torch.zeros_like(starts), 0, 0).shape == (0, view.width)


def test_projected_keys_and_values_are_those_of_the_layer(cache_and_view) -> None:
    _, view = cache_and_view
    batch = make_batch(view)
    slots = batch.slots(view)
    x = torch.randn(len(slots), view.width).to(view.data.dtype)
    hidden_write(x, view, slots)
    weight = torch.randn(64, view.width).to(x.dtype) / view.width**0.5
    bias = torch.randn(64).to(x.dtype)
    starts = batch.starts()
    total = int(starts[-1])
    got = gather_project(view, batch.half_table(), starts, total, 37, weight, bias)
    want = x[:total].double() @ weight.double().T + bias.double()
    tolerance = 1e-5 if x.dtype == torch.float32 else 1e-2
    assert (got.double() - want).norm() <= tolerance * want.norm()
