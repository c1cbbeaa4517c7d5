"""Who shares a cached prefix may come first, as long as its client has credit (after DLPM, arXiv 2501.14312).

Fair order alternates between clients, and so between prompts that share nothing, which a small prefix cache does not
survive. With a quantum Q the request that has most of its prompt in the cache is admitted first, among those whose
client is ahead of the least served one by less than Q. Nobody else's turn is lost: who is passed keeps its counter,
and the others run out of credit. So the gap between two clients that wait grows by at most Q, and Q = 0 is the fair
order itself. Different from DLPM: credit is measured against the least served client, not granted in rounds, so it
cannot pile up; and only the next `_LOOK_AHEAD` requests of the fair order are looked at, because each costs a look into
the prefix cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping

from vllm_hybrid.policy.fairness import VirtualCounters
from vllm_hybrid.policy.request import ClientKey, RequestView

_LOOK_AHEAD = 32
_MOST_PASSED = 64  # times that a request is passed by others of its own client, who share its counter


def longest_prefix_first(
    walk: Generator[RequestView, None, None],
    counters: VirtualCounters,
    promised: Mapping[ClientKey, float],
    quantum: float,
    cached_tokens: Callable[[RequestView], int],
    closed: Collection[ClientKey],
) -> Generator[RequestView, None, None]:
    """The requests of a fair walk, those with a longer cached prefix first where their client has credit.

    promised: as of `VirtualCounters.add_promise`. cached_tokens: of the prompt, in the prefix cache now. closed:
    clients to pass over; may grow.
    """
    ahead: list[tuple[int, RequestView]] = []  # tokens in the cache, request; in fair order
    taken = dict(promised)  # and what was yielded

    def has_credit(key: ClientKey) -> bool:
        return all(counters.lead(key, other, taken) < quantum for other in {view.key for _, view in ahead} - {key})

    more = True
    try:
        while True:
            ahead = [entry for entry in ahead if entry[1].key not in closed]
            while more and len(ahead) < _LOOK_AHEAD:
                view = next(walk, None)
                more = view is not None
                if view is not None:
                    ahead.append((cached_tokens(view), view))
                    if not has_credit(view.key):
                        break
            if not ahead:
                return
            credit = {key: has_credit(key) for key in {view.key for _, view in ahead}}
            best = max(
                (e for e in ahead if credit[e[1].key]), key=lambda e: e[0], default=ahead[0]
            )  # of equals the first
            head = next(view for _, view in ahead if view.key == best[1].key)
            if best[1] is not head:
                head.passed_over += 1
                if head.passed_over > _MOST_PASSED:
                    best = next(entry for entry in ahead if entry[1] is head)
            ahead.remove(best)
            cached, view = best
            counters.add_promise(taken, view, view.missing_tokens - cached)
            yield view
    finally:
        walk.close()
