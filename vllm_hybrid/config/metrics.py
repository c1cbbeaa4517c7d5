"""What the metrics say of single clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from vllm_hybrid.config.section import Section, no_bool


class MetricsConfig(Section):
    clients: Literal["hashed", "names", "none"] = "hashed"
    """The label `client` on /metrics. hashed: the first 12 hex digits of the id's SHA-256. names: the ids themselves,
    which everybody who may read /metrics then sees. none: all clients together."""

    first_clients: Annotated[int, Field(ge=0, le=1000), BeforeValidator(no_bool)] = 50
    """How many clients that the settings do not name get time series of their own: the first that ask. All others are
    `other` together, so that names from outside cannot fill the memory of whoever collects."""
