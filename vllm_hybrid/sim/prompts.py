"""Prompt tokens that say only what a prefix cache can see: which prompts begin alike.

Equal leading `hash_ids` become equal leading tokens; all else is unique to its request. Without a prefix cache nobody
looks at the tokens, and prompts of one length share one list.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import count

from vllm_hybrid.sim.records import SimRequest


class PromptTokens:
    """Makes prompts. shared: nobody looks at the tokens."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        self._unique = count(-1, -1)  # no hash id is negative

    def of(self, request: SimRequest) -> list[int]:
        """The prompt of `request`; its caller must not change it."""
        if self._shared:
            return _alike(request.prompt_tokens)
        tokens: list[int] = []
        for hash_id in request.hash_ids:
            tokens += [hash_id] * request.hash_block_tokens
        missing = request.prompt_tokens - len(tokens)
        if missing > 0:
            tokens += [next(self._unique)] * missing
        return tokens[: request.prompt_tokens]


@lru_cache(maxsize=256)
def _alike(tokens: int) -> list[int]:
    return [0] * tokens
