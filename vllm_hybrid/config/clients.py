"""What the settings say of single clients and of groups of them."""

from __future__ import annotations

from vllm_hybrid.config.names import ClientId
from vllm_hybrid.config.section import Count, Positive, Section


class LimitsConfig(Section):
    max_running: Count | None = None
    """Requests of a client that may run at a time, in both lanes together; the others wait. None: any number."""

    max_waiting: Count | None = None
    """Requests of a client that may wait for their first token, as an API server process counts them. One more is
    refused: 429 with Retry-After, a ValueError in the Python API. None: any number."""

    tokens_per_minute: Count | None = None
    """Prompt and output tokens of a client within 60 seconds, as an API server process counts them, from which on it is
    refused new requests in the same way. None: any number."""


class ClientConfig(Section):
    weight: Positive = 1.0
    """Share of the service, relative to the other clients of the lane, or of its group if it has one: weight 2 gets
    twice as much as 1."""

    group: ClientId | None = None
    """The group it belongs to, one of `groups`. None: it is served beside the groups, as if it were one."""

    limits: LimitsConfig = LimitsConfig()
    """Its own; what is None here is as in fairness.limits."""


class GroupConfig(Section):
    weight: Positive = 1.0
    """Share of the service, relative to the other groups and to the clients without one, however many of its clients
    wait."""
