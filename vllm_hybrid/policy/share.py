"""The share of the computed tokens that offline work gets in any case, also while online work could use everything.

While offline work is there it is owed `share` of all tokens and pays with those it got. As long as it is behind, it has
up to a quarter of a step, whatever the deadlines say, and its memory is not taken for arrivals; if none of it runs
although a whole step is owed, online admissions wait until its first request found room. A debt of more than
`_MOST_STEPS` steps is forgotten, so no lull is followed by a flood. Online decodes always run.
"""

from __future__ import annotations

from vllm_hybrid.policy.offline import Budget

_MOST_STEPS = 8
_LEAST_TOKENS = 64  # of a turn: less is not worth a chunk
_MOST_OF_STEP = 4  # a turn has at most this part of a step


class MinShare:
    """Keeps the account of one engine. share: of all tokens, 0 to below 1."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._owed_tokens = 0.0
        self._last: tuple[Budget, int, Budget, int] | None = None
        self._done = (0, 0)

    @property
    def behind(self) -> bool:
        """Whether offline work got less than its share."""
        return self._owed_tokens > 0

    def starved(self, max_tokens: int) -> bool:
        """Whether so much is owed that online admissions must wait for an offline one."""
        return self._owed_tokens >= max_tokens

    def settle(self, max_tokens: int, offline_waits: bool) -> None:
        """Before a plan: account for the last one, admissions included."""
        if self._last is not None:
            online, online_left, offline, offline_left = self._last
            got = self._done[1] + offline_left - offline.tokens
            everything = self._done[0] + online_left - online.tokens + got
            self._owed_tokens += self._share * everything - got
        most = float(_MOST_STEPS * max_tokens)
        self._owed_tokens = max(-most, min(most, self._owed_tokens)) if offline_waits else 0.0
        self._last = None

    def turn_tokens(self, max_tokens: int) -> int:
        """Tokens that offline work has in the step in any case."""
        if not self.behind:
            return 0
        return int(min(max(_LEAST_TOKENS, self._owed_tokens), max(_LEAST_TOKENS, max_tokens // _MOST_OF_STEP)))

    def note(self, online_tokens: int, online: Budget, offline_tokens: int, offline: Budget) -> None:
        """A plan: tokens given so far, and the budgets from which admissions will take more."""
        self._done = (online_tokens, offline_tokens)
        self._last = (online, online.tokens, offline, offline.tokens)
