"""Memory that offline work leaves to online arrivals: what online work held lately beyond what it holds now.

Offline requests that are let in must not fill what the next online burst will ask for, or they are evicted and computed
again. The burst that is prepared for is the one that was seen: the most blocks that online requests held and asked for
together, fading over a minute. It follows the load by itself, and is nothing where no online work comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from vllm_hybrid.policy.request import RequestView

_FADE_S = 60.0


class Burst:
    """Remembers the most online work held."""

    __slots__ = ("_at_s", "_peak_blocks")

    def __init__(self) -> None:
        self._peak_blocks = 0.0
        self._at_s = -math.inf

    def reserve_blocks(self, running: Iterable[RequestView], now_s: float, block_tokens: int) -> int:
        """Blocks that offline admissions leave free beside the online requests of `running`."""
        held = sum([-(-(v.computed_tokens + v.missing_tokens * v.prefilling) // block_tokens) for v in running])
        past_s = max(0.0, now_s - self._at_s)  # a clock that is set back takes nothing away
        faded = self._peak_blocks * math.exp(-past_s / _FADE_S) if self._peak_blocks else 0.0
        self._peak_blocks, self._at_s = max(faded, float(held)), now_s
        return math.ceil(self._peak_blocks) - held
