"""Ray Serve's request router for our deployments: sees client, lane and prefix, and asks `choice.py`."""

from __future__ import annotations

import pickle
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from vllm_hybrid.config import IdentityError, request_identity
from vllm_hybrid.ray.choice import Chooser, Routed


class HybridRouter(FIFOMixin, RequestRouter):
    """One per process that holds a handle to the deployment."""

    def initialize_state(self, imbalance: float, prefix_chars: int, header: str | None) -> None:  # type: ignore[override]
        """Settings of the schema; header: where an ASGI request names its client."""
        self._chooser = Chooser(imbalance)
        self._prefix_chars = prefix_chars
        self._header = (header or "").encode()
        self._under_way: dict[str, Routed] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank per replica, the best first."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: replica.routing_stats or {} for name, replica in by_name.items()}
        return [[by_name[name]] for name in self.ranked(self.seen(pending_request), loads)]

    def ranked(self, request: Routed, loads: dict[str, dict[str, float]]) -> list[str]:
        """Candidates by name, the best first; for subclasses to narrow down."""
        return self._chooser.rank(request, loads)

    def seen(self, pending_request: PendingRequest) -> Routed:
        """What the request says about itself; nothing where it cannot be read, which the engine will refuse."""
        try:
            body = pending_request.args[0] if pending_request.args else None
            if isinstance(body, bytes):
                return self._of_headers(dict(pickle.loads(body).asgi_scope["headers"]))
            lane, client = request_identity(getattr(body, "vllm_xargs", None))
            return Routed(client, lane == "online", self._head(body))
        except (IdentityError, AttributeError, TypeError, KeyError, pickle.UnpicklingError):
            return Routed()

    def _of_headers(self, headers: dict[bytes, bytes]) -> Routed:
        client = headers.get(self._header, b"").decode("latin-1") if self._header else ""
        return Routed(client or "default", True)

    def _head(self, body: Any) -> str:
        prompt = getattr(body, "prompt", None)
        if prompt is None:
            prompt = [message.get("content") for message in getattr(body, "messages", None) or ()]
        return str(prompt)[: self._prefix_chars] if prompt else ""

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The choice is made."""
        request = self.seen(pending_request)
        self._under_way[pending_request.metadata.internal_request_id] = request
        self._chooser.sent(request, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request was answered, or failed."""
        request = self._under_way.pop(internal_request_id, None)
        if request is not None:
            self._chooser.ended(request, replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Replicas came or went."""
        super().update_replicas(replicas)
        self._chooser.keep([replica.replica_id.unique_id for replica in replicas])
