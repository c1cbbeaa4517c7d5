"""What a client is called on ``/metrics``: never by its id, unless the operator says so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from vllm_hybrid.config import DEFAULT_CLIENT
from vllm_hybrid.config.metrics import MetricsConfig

OTHERS = "other"
EVERYBODY = "all"
_HASH_DIGITS = 12


class ClientLabels:
    """The label of every client. Who has time series of its own is what the engines say; all others are `other`."""

    def __init__(self, settings: MetricsConfig) -> None:
        self._style = settings.clients
        self._labels: dict[str, str] = {}

    def know(self, clients: Iterable[str | None]) -> None:
        """These have time series of their own from now on."""
        for client in clients:
            if client is not None and client not in self._labels:
                self._labels[client] = self._label(client)

    @property
    def known(self) -> tuple[str, ...]:
        """Who has time series of its own."""
        return tuple(self._labels)

    def of(self, client: str | None) -> str:
        """The client's label."""
        if self._style == "none":
            return EVERYBODY
        return OTHERS if client is None else self._labels.get(client, OTHERS)

    def _label(self, client: str) -> str:
        if self._style == "names" or client == DEFAULT_CLIENT:
            return client
        return hashlib.sha256(client.encode()).hexdigest()[:_HASH_DIGITS]
