"""Virtual token counters (VTC, arXiv 2401.00588): who is served next.

Every client of a lane has a counter of the service it received, divided by its weight; the waiting client with the
smallest counter is admitted next. A client that comes back from idleness is lifted to the smallest counter among those
that wait (to that of the client whose queue emptied last, if nobody waits), so idleness earns no credit; a counter is
never lowered, so over-service is remembered.

Differences from the paper: charged are the tokens really computed, chunk by chunk (the paper charges a whole prompt
at admission); each prompt token is charged once, also when a preemption makes it be computed again; what is admitted
but not computed yet is added when clients are compared (`WaitingRequests.walk`), which restores the paper's order of
admission. The lift does not see what is admitted but not computed, so a newcomer may start up to one prompt lower
than in the paper.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from vllm_hybrid.policy.lengths import OutputLengths
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView


class VirtualCounters:
    """Service received per (lane, client), in VTC units divided by the client's weight.

    input_price, output_price: service units per prompt / generated token (paper: 1 and 2). weights: client -> share
    weight, 1 if absent.
    """

    __slots__ = ("_last_left", "_weights", "input_price", "lengths", "output_price", "values")

    def __init__(
        self,
        input_price: float,
        output_price: float,
        weights: Mapping[str, float],
        lengths: OutputLengths | None = None,
    ) -> None:
        self.lengths = lengths
        self.input_price = input_price
        self.output_price = output_price
        self.values: dict[ClientKey, float] = {}
        self._weights = dict(weights)
        self._last_left: dict[Lane, ClientKey] = {}

    def value(self, key: ClientKey) -> float:
        """Counter of a client; 0 if it was never seen."""
        return self.values.get(key, 0.0)

    def weight(self, key: ClientKey) -> float:
        """The client's share weight."""
        return self._weights.get(key[1], 1.0)

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Charge by these weights from now on; what was charged stays."""
        self._weights = dict(weights)

    def fairly(self, views: Sequence[RequestView]) -> Sequence[RequestView]:
        """Requests of the least served clients first; those of one client keep their order."""
        return sorted(views, key=lambda v: self.value(v.key)) if len(views) > 1 else views

    def cost(self, key: ClientKey, prompt_tokens: float, output_tokens: float) -> float:
        """What computing these tokens adds to the client's counter."""
        units = self.input_price * prompt_tokens + self.output_price * output_tokens
        return units / self._weights.get(key[1], 1.0)

    def promise(self, view: RequestView, prompt_tokens: int) -> float:
        """What the request will add to the counter yet: its uncomputed prompt, and output as far as it is predicted."""
        if self.lengths is None:
            return self.cost(view.key, prompt_tokens, 0)
        return self.cost(view.key, prompt_tokens, max(0.0, self.lengths.expected(view) - view.output_tokens))

    def charge(self, key: ClientKey, prompt_tokens: float, output_tokens: int) -> None:
        """Bill tokens that were computed."""
        self.values[key] = self.values.get(key, 0.0) + self.cost(key, prompt_tokens, output_tokens)

    def charge_outputs(self, tokens: Mapping[ClientKey, int], steps: int) -> None:
        """Bill `steps` steps in each of which clients generated so many tokens."""
        values, weights, price = self.values, self._weights, self.output_price * steps
        if not weights:
            for key, count in tokens.items():
                values[key] = values.get(key, 0.0) + price * count
            return
        for key, count in tokens.items():
            values[key] = values.get(key, 0.0) + price * count / weights.get(key[1], 1.0)

    def lift(self, key: ClientKey, smallest_waiting: float | None) -> None:
        """A request of a client with an empty queue arrives.

        smallest_waiting: smallest counter among the lane's waiting clients, None if nobody waits.
        """
        if smallest_waiting is None:
            last = self._last_left.get(key[0])
            smallest_waiting = 0.0 if last is None else self.value(last)
        if self.value(key) < smallest_waiting or key not in self.values:
            self.values[key] = max(self.value(key), smallest_waiting)

    def forget_idle(self, busy: Container[ClientKey], smallest_waiting: Mapping[Lane, float | None]) -> None:
        """Drop the counters of idle clients that a lift would raise anyway: nothing changes for anybody."""
        if self.lengths is not None:
            self.lengths.forget_idle(busy)
        for key in [key for key in self.values if key not in busy]:
            last = self._last_left.get(key[0])
            floor = smallest_waiting[key[0]]
            if floor is None and last is not None:
                floor = self.value(last)
            if key != last and floor is not None and self.values[key] <= floor:
                del self.values[key]

    def left(self, key: ClientKey) -> None:
        """The client's last waiting request was taken out of the queue."""
        self._last_left[key[0]] = key
