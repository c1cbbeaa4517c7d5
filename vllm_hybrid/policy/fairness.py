"""Virtual token counters (VTC, arXiv 2401.00588): who is served next.

Every client of a lane has a counter of the service it received, divided by its weight; the waiting client with the
smallest counter is admitted next. A client that comes back from idleness is lifted to the smallest counter among those
that wait (to that of the client whose queue emptied last, if nobody waits), so idleness earns no credit; a counter is
never lowered, so over-service is remembered. Clients may form groups: a group has a counter too, beside the clients
that belong to none, and is served like one of them; inside it the client with the smallest counter is next
(hierarchical fair queuing).

Differences from the paper: charged are the tokens really computed, chunk by chunk (the paper charges a whole prompt
at admission); each prompt token is charged once, also when a preemption makes it be computed again; what is admitted
but not computed yet is added when clients are compared (`WaitingRequests.walk`), which restores the paper's order of
admission. The lift does not see what is admitted but not computed, so a newcomer may start up to one prompt lower
than in the paper.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from vllm_hybrid.policy.cost import Prices, TokenPrices
from vllm_hybrid.policy.latency_model import NOTHING
from vllm_hybrid.policy.lengths import OutputLengths
from vllm_hybrid.policy.request import ClientKey, Lane, RequestView

Parent = Lane | ClientKey
"""What a counter is compared within: the lane, or a group of the lane."""

_GROUP = "/"  # before a group's name: no client id begins so


def group_name(group: str) -> str:
    """A group's name among those of clients."""
    return _GROUP + group


def is_group(key: ClientKey) -> bool:
    """Whether a counter is that of a group."""
    return key[1].startswith(_GROUP)


class VirtualCounters:
    """Service received per (lane, client or group), divided by the weight.

    input_price, output_price: service units per prompt / generated token (paper: 1 and 2). weights: client, or
    `group_name`, -> share weight, 1 if absent. groups: client -> its group's `group_name`. prices: other units than
    weighted tokens.
    """

    __slots__ = (
        "_groups",
        "_last_left",
        "_weights",
        "bill_recompute",
        "input_price",
        "lengths",
        "output_price",
        "prices",
        "values",
    )

    def __init__(
        self,
        input_price: float,
        output_price: float,
        weights: Mapping[str, float],
        groups: Mapping[str, str] | None = None,
        lengths: OutputLengths | None = None,
    ) -> None:
        self.lengths = lengths
        self.input_price = input_price
        self.output_price = output_price
        self.prices: Prices = TokenPrices(input_price, output_price)
        self.bill_recompute = False
        self.values: dict[ClientKey, float] = {}
        self._weights = dict(weights)
        self._groups = dict(groups or {})
        self._last_left: dict[Parent, ClientKey] = {}

    def value(self, key: ClientKey) -> float:
        """Counter of a client; 0 if it was never seen."""
        return self.values.get(key, 0.0)

    def weight(self, key: ClientKey) -> float:
        """The client's share weight."""
        return self._weights.get(key[1], 1.0)

    @property
    def least_weight(self) -> float:
        """The smallest weight there is."""
        return min(1.0, *self._weights.values()) if self._weights else 1.0

    def parent(self, key: ClientKey) -> Parent:
        """Whom the counter is compared within."""
        group = self._groups.get(key[1])
        return key[0] if group is None else (key[0], group)

    def standing(self, key: ClientKey) -> tuple[float, ...]:
        """What the client is compared by: its group's counter before its own, where it belongs to one."""
        parent = self.parent(key)
        return (self.value(key),) if isinstance(parent, Lane) else (self.value(parent), self.value(key))

    def lead(self, key: ClientKey, other: ClientKey, promised: Mapping[ClientKey, float]) -> float:
        """Service by which a client is ahead of another one of its lane, in units of the other's weight.

        promised: as of `add_promise`.
        """
        parent, beside = self.parent(key), self.parent(other)
        if parent != beside:  # clients of different groups are compared by their groups
            key = key if isinstance(parent, Lane) else parent
            other = other if isinstance(beside, Lane) else beside
        ahead = self.value(key) + promised.get(key, 0.0) - self.value(other) - promised.get(other, 0.0)
        return ahead * self.weight(other)

    def set_shares(self, weights: Mapping[str, float], groups: Mapping[str, str]) -> None:
        """Charge by these weights and groups from now on; what was charged stays.

        Who changes its group is a newcomer there: counters of different groups measure different things.
        """
        before, self._groups = self._groups, dict(groups)
        self._weights = dict(weights)
        for key in [key for key in self.values if before.get(key[1]) != self._groups.get(key[1])]:
            del self.values[key]

    def fairly(self, views: Sequence[RequestView]) -> Sequence[RequestView]:
        """Requests of the least served clients first; those of one client keep their order."""
        if len(views) < 2:
            return views
        if self._groups:
            return sorted(views, key=lambda v: self.standing(v.key))
        return sorted(views, key=lambda v: self.value(v.key))

    def cost(self, key: ClientKey, prompt_tokens: float, output_tokens: float) -> float:
        """What computing these tokens adds to the client's counter, in weighted tokens."""
        units = self.input_price * prompt_tokens + self.output_price * output_tokens
        return units / self._weights.get(key[1], 1.0)

    def promise(self, view: RequestView, prompt_tokens: int) -> float:
        """Service that the request will be charged for yet, before any weight.

        Its uncomputed prompt, as far as that is not paid already, and output as far as it is predicted.
        """
        if not self.bill_recompute:
            prompt_tokens = min(prompt_tokens, max(0, view.prompt_tokens - view.billed_prompt_tokens))
        units = 0.0
        if prompt_tokens:
            units = self.prices.prompt(prompt_tokens, view.computed_tokens, not view.billed_prompt_tokens, NOTHING)
        if self.lengths is not None:
            ahead = self.lengths.expected(view) - view.output_tokens
            if ahead > 0:
                units += self.prices.outputs(view.prompt_tokens, view.output_tokens, ahead, NOTHING)
        return units

    def add_promise(self, promised: dict[ClientKey, float], view: RequestView, prompt_tokens: int) -> None:
        """Add to `promised` what the request will add to the counters of its client, and of its group."""
        units = self.promise(view, prompt_tokens)
        key: Parent = view.key
        while not isinstance(key, Lane):
            promised[key] = promised.get(key, 0.0) + units / self._weights.get(key[1], 1.0)
            key = self.parent(key)

    def charge(self, key: ClientKey, prompt_tokens: float, output_tokens: int) -> None:
        """Bill tokens that were computed."""
        self.bill(key, self.input_price * prompt_tokens + self.output_price * output_tokens)

    def bill(self, key: ClientKey, units: float) -> None:
        """Bill service to a client, and to its group."""
        values, weights = self.values, self._weights
        values[key] = values.get(key, 0.0) + units / weights.get(key[1], 1.0)
        if self._groups and (group := self._groups.get(key[1])) is not None:
            key = (key[0], group)
            values[key] = values.get(key, 0.0) + units / weights.get(group, 1.0)

    def charge_outputs(self, tokens: Mapping[ClientKey, int], steps: int) -> None:
        """Bill `steps` steps in each of which clients generated so many tokens."""
        values, weights, price = self.values, self._weights, self.output_price * steps
        if not weights and not self._groups:
            for key, count in tokens.items():
                values[key] = values.get(key, 0.0) + price * count
            return
        for key, count in tokens.items():
            self.bill(key, price * count)

    def lift(self, key: ClientKey, smallest_waiting: float | None) -> None:
        """A request of a client with an empty queue arrives.

        smallest_waiting: smallest counter among those that wait beside it, None if nobody does.
        """
        if smallest_waiting is None:
            last = self._last_left.get(self.parent(key))
            smallest_waiting = 0.0 if last is None else self.value(last)
        if self.value(key) < smallest_waiting or key not in self.values:
            self.values[key] = max(self.value(key), smallest_waiting)

    def forget_idle(self, busy: Container[ClientKey], smallest_waiting: Mapping[Parent, float | None]) -> None:
        """Drop the counters of idle clients that a lift would raise anyway: nothing changes for anybody.

        smallest_waiting: by lane; of a group that is not in it nobody waits. Groups are never forgotten: they are those
        of the settings.
        """
        if self.lengths is not None:
            self.lengths.forget_idle(busy)
        for key in [key for key in self.values if key not in busy and not is_group(key)]:
            parent = self.parent(key)
            last = self._last_left.get(parent)
            floor = smallest_waiting.get(parent)
            if floor is None and last is not None:
                floor = self.value(last)
            if key != last and floor is not None and self.values[key] <= floor:
                del self.values[key]

    def left(self, key: ClientKey) -> None:
        """The client's last waiting request was taken out of the queue."""
        self._last_left[self.parent(key)] = key
