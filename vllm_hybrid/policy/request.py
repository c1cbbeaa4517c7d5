"""What a policy may know about a request: a small record of numbers, never the engine's own object.

The adapter creates one `RequestView` per request, refreshes the figures in the middle group before every plan, and
carries the engine's request in `handle`, which the policy passes back and never looks into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Lane(IntEnum):
    """Two kinds of work: somebody waits for it (online), or it only has to be done (offline)."""

    ONLINE = 0
    OFFLINE = 1

    @property
    def label(self) -> str:
        """The lane's name as users write it."""
        return self.name.lower()


ClientKey = tuple[Lane, str]
"""A client in a lane: the unit of fair queuing."""


@dataclass(slots=True, eq=False)
class RequestView:
    """One request as the policy sees it; compared and hashed by identity."""

    request_id: str
    key: ClientKey
    arrival_s: float  # on the clock of the scheduler
    priority: int
    order_s: float  # arrival as vLLM compares it (wall clock of the front end)
    prompt_tokens: int
    handle: Any
    max_output_tokens: int = 1  # it may generate; the first token is one of them
    prefix: tuple[bytes, ...] = ()  # hashes of the beginning of its prompt (`prefix_order.prefix_of`)

    # Refreshed by the adapter before a plan (running and parked requests; a waiting one keeps `missing_tokens`).
    computed_tokens: int = 0  # tokens whose KV is held
    missing_tokens: int = 0  # tokens to compute before the next one can be sampled; drafts not counted
    prefilling: bool = False
    output_tokens: int = 0  # delivered so far
    halves: int = 1  # of its blocks fit into one: 1 with KV, more once its cache has the half form
    wants_half: bool | None = None  # the form that it is to get where it is admitted; None: as the memory demands
    in_flight: int = 0  # steps under way that will deliver output of it (async scheduling)

    # Kept by the policy from step to step.
    deadline_s: float = math.nan  # when the next token is late; NaN: not known yet
    dated_tokens: int = 0  # output tokens that `deadline_s` already accounts for
    last_token_s: float = math.nan  # when the youngest of `dated_tokens` was delivered
    billed_prompt_tokens: int = 0  # prompt tokens charged so far: a recompute is not billed again
    disturbed_s: float = -math.inf  # when it last lost its memory to somebody else, or came back after that
    started: bool = False  # ran before and lost its memory: it resumes before anything new of its lane
    late: bool = False  # its first token cannot come in time any more
    late_s: float = math.nan  # since when it stands behind those of its client that can be in time
    stands_back_s: float = -math.inf  # it gave its memory away and comes back until then only where there is room
    bypassed: int = 0  # later requests admitted while this one did not fit
    passed_over: int = 0  # others of its client offered before it for their cached prefix

    # Kept by the books of waits (`policy/waits.py`).
    waits_since_s: float = math.nan  # when it joined its client's line; NaN: it does not stand in one
    left_s: float = math.nan  # when it was taken out of the line; NaN again once it runs
    first_mark: Any = None  # since it is the first of its line
    waited_s: dict[Any, float] | None = None  # seconds by reason, of what is over of its present wait

    @property
    def lane(self) -> Lane:
        """Lane of the request."""
        return self.key[0]

    @property
    def client(self) -> str:
        """Client that pays for the request."""
        return self.key[1]
