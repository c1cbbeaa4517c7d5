"""Counters shared by the replicas of a model: what others serve counts here, and nothing counts twice.

A replica reports, per client and lane, the service it gave as an absolute number, and is answered with the counter
of every client over all replicas; between two answers it adds its own service to that. So every replica decides by
the same counters, as old as the last report. A client is lifted when it was backlogged nowhere, to the minimum over
the clients that are backlogged anywhere.

What is reported is frozen until it is answered: sent again it is the same absolute numbers, so in the life of one hub
every unit counts exactly once. A new hub (another epoch) knows nothing: a replica then reports its counters as they
stood at its last report, and what it served since. Of a report that was under way when the hub died nobody knows who
heard it; it is not reported again, so over the lives of hubs every unit counts at most once.

No clock, no transport: `ray/` carries the reports, `benchmarks/replicas.py` simulates them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_hybrid.policy.fairness import Parent, VirtualCounters
from vllm_hybrid.policy.request import ClientKey, Lane

_EXACT = 1e-9  # of a counter: sums of floats differ by less


@dataclass(frozen=True, slots=True)
class Sent:
    """What a hub was last told of a client."""

    own: float  # service given here in the hub's epoch
    waiting: bool


class SharedCounters:
    """One replica's side. A counter is `mark` plus the replica's own service in the hub's epoch."""

    def __init__(self, counters: VirtualCounters) -> None:
        self._counters = counters
        self._mark: dict[ClientKey, float] = {}
        self._generation: dict[ClientKey, int] = {}  # how often clients had been forgotten when this one was met
        self._forgotten = 0
        self._sent: dict[ClientKey, Sent] = {}
        self._touched: set[ClientKey] = set()  # lifted since the last report
        self._pending: dict[str, Any] | None = None
        self._attempts = 0  # to bring the pending report to a hub
        self._epoch = ""  # joined, or to be joined with the next report
        self._heard = ""  # epoch of the last answer
        self._joined = False
        self._since = 0  # the hub's version that was heard last
        self._smallest: dict[tuple[int, str], float] = {}  # by lane and group, "" for none
        self.elsewhere: set[ClientKey] = set()  # clients that are backlogged in other replicas

    # -- scheduling ----------------------------------------------------------------------------------------------
    def lift(self, key: ClientKey, smallest_waiting: float | None) -> None:
        """A request of a client arrives whose queue here is empty; smallest_waiting as in `VirtualCounters.lift`."""
        if key in self.elsewhere:
            return  # backlogged all the time, only not here
        anywhere = self._smallest.get((int(key[0]), self._beside(key)))
        known = [value for value in (smallest_waiting, anywhere) if value is not None]
        before = self._counters.value(key)
        self._counters.lift(key, min(known, default=None))
        if raised := self._counters.value(key) - before:
            self._mark[key] = self._mark.get(key, 0.0) + raised
            self._touched.add(key)

    def _beside(self, key: ClientKey) -> str:
        """The group within which the client is compared; "" in its lane."""
        parent = self._counters.parent(key)
        return "" if isinstance(parent, Lane) else parent[1]

    def forget_idle(self, busy: Container[ClientKey], smallest_waiting: Mapping[Parent, float | None]) -> None:
        """`VirtualCounters.forget_idle`; who comes back after it is a new entry in the hub's books."""
        self._counters.forget_idle(busy, smallest_waiting)
        self._drop_forgotten()

    def _drop_forgotten(self) -> None:
        """Clients whose counters are gone, because they were idle or changed their group."""
        values = self._counters.values
        gone = (self._mark.keys() | self._generation.keys() | self._sent.keys()) - values.keys()
        self._forgotten += bool(gone)
        for key in gone:
            self._mark.pop(key, None)
            self._generation.pop(key, None)
            self._sent.pop(key, None)
        self._touched.intersection_update(values)
        self.elsewhere.intersection_update(values)

    # -- the exchange --------------------------------------------------------------------------------------------
    def report(self, waits: Callable[[ClientKey], bool]) -> dict[str, Any]:
        """What the hub shall be told: plain data; the same again until `apply` is given its answer.

        waits: whether the client has a waiting request here. O(clients known).
        """
        if self._pending is None:
            self._drop_forgotten()
            self._pending = {
                "epoch": self._epoch,
                "join": not self._joined,
                "heard": self._heard,
                "since": self._since,
                "rows": list(self._rows(waits)),
            }
            self._attempts = 0
        self._attempts += 1
        return self._pending

    def _rows(self, waits: Callable[[ClientKey], bool]) -> Any:
        """[lane, client, generation, own service, counter without it, waiting, group] of every client that changed."""
        touched, self._touched = self._touched, set()
        nothing = Sent(0.0, False)
        for key, value in self._counters.values.items():
            mark, sent, waiting = self._mark.get(key, 0.0), self._sent.get(key, nothing), waits(key)
            own = value - mark
            if (
                waiting != sent.waiting
                or abs(own - sent.own) > _EXACT * (1 + value)
                or key in touched
                or not self._joined
            ):
                generation = self._generation.setdefault(key, self._forgotten)
                yield [int(key[0]), key[1], generation, own, mark, waiting, self._beside(key)]

    def apply(self, answer: dict[str, Any]) -> None:
        """Take the hub's answer to the report that is pending."""
        if answer["epoch"] != self._epoch or answer["join"]:
            self._begin(answer["epoch"])
            return
        assert self._pending is not None, "an answer without a report"
        for lane, client, _, own, _, waiting, _ in self._pending["rows"]:
            self._sent[Lane(lane), client] = Sent(own, waiting)
        self._pending = None
        self._joined, self._heard, self._since = True, self._epoch, answer["version"]
        several = answer["replicas"] > 1
        self._smallest = {(lane, group): value for lane, group, value in answer["smallest"]} if several else {}
        for lane, client, counter, waiting_elsewhere in answer["rows"]:
            key = (Lane(lane), client)
            self._raise(key, counter)
            (self.elsewhere.add if waiting_elsewhere else self.elsewhere.discard)(key)

    def _raise(self, key: ClientKey, counter: float) -> None:
        """The hub's counter includes what was reported; what was served here since comes on top. Never lowered."""
        value, mark = self._counters.value(key), self._mark.get(key, 0.0)
        sent = self._sent.get(key)
        higher = counter + (value - mark) - (0.0 if sent is None else sent.own) - value
        if higher > 0 or key not in self._counters.values:
            self._counters.values[key] = value + higher
            self._mark[key] = mark + higher

    def _begin(self, epoch: str) -> None:
        """Join the books of a hub that does not know this replica: own service counts from the last report on."""
        for key, sent in self._sent.items():
            self._mark[key] = self._mark.get(key, 0.0) + sent.own
        refused = self._attempts == 1  # else an earlier attempt may have been heard
        for lane, client, _, own, _, _, _ in () if refused or self._pending is None else self._pending["rows"]:
            key = (Lane(lane), client)
            if key in self._counters.values:
                before = self._sent[key].own if key in self._sent else 0.0
                self._mark[key] = self._mark.get(key, 0.0) + own - before
        self._sent = {}
        self._pending = None
        self._epoch, self._joined, self._since = epoch, False, 0

    def alone(self) -> None:
        """The hub is silent: its counters stand, but who is backlogged elsewhere is no longer known."""
        self.elsewhere.clear()
        self._smallest = {}
        self._since = 0
        if self._pending is not None:
            self._pending["since"] = 0
