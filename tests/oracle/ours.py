"""The classes under test."""

from vllm_hybrid.engine.scheduler import HybridScheduler, HybridSyncScheduler
from vllm_hybrid.sim.modelfree import Classes

HYBRID = Classes(HybridSyncScheduler, HybridScheduler)
