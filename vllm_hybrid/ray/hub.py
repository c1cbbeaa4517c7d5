"""The hub actor: the books of all replicas, in one process that Serve creates, checks, recreates and removes."""

from __future__ import annotations

import time
import uuid
from typing import Any

import ray

from vllm_hybrid.ray.books import Books

HUB = "vllm-hybrid-hub"


@ray.remote
class FairnessHub:
    """One per deployment; what it knows dies with it, and replicas bring it again (another epoch)."""

    def __init__(self, ttl_s: float) -> None:
        self._books = Books(uuid.uuid4().hex, ttl_s)

    def report(self, replica: str, report: dict[str, Any]) -> dict[str, Any]:
        """A replica's report, answered with what the others did."""
        return self._books.report(replica, report, time.monotonic())

    def service(self, most: int = 1000) -> dict[str, dict[str, float]]:
        """Counters by lane and client, of the clients that changed last."""
        return self._books.service(most)

    def totals(self) -> dict[str, Any]:
        """The books in short."""
        return self._books.totals()
