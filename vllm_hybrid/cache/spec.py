"""A KV cache spec whose blocks may also hold half blocks, known to vLLM together with its manager.

The worker makes the spec, the engine core finds the manager by it. Importing this module registers both, so a process
that only unpickles a spec knows its manager as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, replace_as
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from vllm_hybrid import __version__
from vllm_hybrid.cache.manager import HalfBlockManager


@dataclass(frozen=True, kw_only=True)
class HalfBlockSpec(FullAttentionSpec):
    halves: int
    """R: half blocks per block."""

    version: str = __version__
    """Of the package in the worker that made the spec."""

    cost: Any = field(default=None, compare=False)
    """A `StepCost` as the worker measured it, or whatever else answers `half_extra_s`; None: not known."""

    @classmethod
    def merge(cls, specs: list[HalfBlockSpec]) -> HalfBlockSpec:
        assert all(spec == specs[0] for spec in specs[1:]), "layers of one group differ"
        return specs[0]


def with_half_blocks(spec: FullAttentionSpec, halves: int, cost: Any = None) -> HalfBlockSpec:
    """The same spec, its blocks divisible."""
    return replace_as(spec, HalfBlockSpec, halves=halves, cost=cost)


# Registering first would keep vLLM from registering its own: it only looks whether there is any.
KVCacheSpecRegistry._ensure_registered()
KVCacheSpecRegistry.register(HalfBlockSpec, HalfBlockManager, uniform_type_base_spec=FullAttentionSpec)
