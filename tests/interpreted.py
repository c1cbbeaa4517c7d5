"""vLLM's own Triton kernels under the interpreter: its CPU build has put a stand-in in Triton's place.

The modules that took the stand-in are imported anew, with Triton itself, and again without it afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl

WITH_KERNELS = (
    "vllm.v1.attention.ops.triton_",
    "vllm.v1.attention.backends.triton_attn",
    "vllm_hybrid.cache.gpu_",
)


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith(WITH_KERNELS)]:
        del sys.modules[name]


@contextmanager
def vllm_kernels_interpreted() -> Iterator[Any]:
    """`vllm_hybrid.cache.gpu_attention`, on kernels that can run here."""
    from vllm import triton_utils

    stand_in = triton_utils.triton, triton_utils.tl
    triton_utils.triton, triton_utils.tl = triton, tl
    _forget()
    try:
        with patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)):
            yield import_module("vllm_hybrid.cache.gpu_attention")
    finally:
        triton_utils.triton, triton_utils.tl = stand_in
        _forget()
