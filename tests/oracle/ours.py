"""The classes under test."""

from tests.oracle.harness import Classes
from vllm_hybrid.engine.scheduler import HybridScheduler, HybridSyncScheduler

HYBRID = Classes(HybridSyncScheduler, HybridScheduler)
