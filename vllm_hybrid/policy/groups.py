"""The running requests, sorted by lane and phase: the form in which every later decision needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView


@dataclass(slots=True)
class Groups:
    """Running requests of a step; inside a group in the order in which they were admitted."""

    online_decodes: list[RequestView] = field(default_factory=list)
    online_prefills: list[RequestView] = field(default_factory=list)
    offline_decodes: list[RequestView] = field(default_factory=list)
    offline_prefills: list[RequestView] = field(default_factory=list)

    @classmethod
    def of(cls, running: Iterable[RequestView]) -> Groups:
        """Sort `running`; one pass."""
        groups = cls()
        online_decode = groups.online_decodes.append
        online_prefill = groups.online_prefills.append
        offline_decode = groups.offline_decodes.append
        offline_prefill = groups.offline_prefills.append
        online = Lane.ONLINE
        for view in running:
            if view.key[0] is online:
                (online_prefill if view.prefilling else online_decode)(view)
            else:
                (offline_prefill if view.prefilling else offline_decode)(view)
        return groups

    @property
    def online(self) -> bool:
        """Whether an online request runs."""
        return bool(self.online_decodes or self.online_prefills)

    @property
    def offline(self) -> bool:
        """Whether an offline request runs."""
        return bool(self.offline_decodes or self.offline_prefills)

    def promised(self, counters: VirtualCounters) -> dict[ClientKey, float]:
        """What the running requests will still add to the counters of clients and groups, as far as is known."""
        promised: dict[ClientKey, float] = {}
        for view in (*self.online_prefills, *self.offline_prefills):
            counters.add_promise(promised, view, view.missing_tokens)
        if counters.lengths is not None:
            for view in (*self.online_decodes, *self.offline_decodes):
                counters.add_promise(promised, view, 0)
        return promised
