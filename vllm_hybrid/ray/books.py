"""The hub's books: the service of every client over all replicas, and who is backlogged where.

Pure: no Ray, no clock of its own. A client's counter is a base plus what each replica reported as its own service in
this epoch; reports are absolute, so a report that comes twice changes nothing. The base takes the larger of what
replicas bring from before this epoch and what a lift asks for: a maximum, so two replicas that lift the same client at
once lift it once. Counters never fall. A replica is answered with the clients that changed since it was last answered.

Cost of a report: O(its rows + the rows of its answer), and O(log clients) for each client that newly waits.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

Key = tuple[int, str]  # lane, client
MOST_CLIENTS = 100_000  # in the books; of more, the idle ones that changed longest ago are dropped


@dataclass(slots=True)
class Account:
    """One client in one lane."""

    base: float = 0.0
    served: float = 0.0  # sum of the replicas' own service
    waits_in: int = 0  # replicas
    version: int = 0  # of its last change
    group: str = ""  # within which it is compared; "" in its lane

    @property
    def counter(self) -> float:
        """Service, with what the client was lifted by."""
        return self.base + self.served


@dataclass(slots=True)
class Replica:
    """What one replica reported: client -> (generation, own service)."""

    own: dict[Key, tuple[int, float]] = field(default_factory=dict)
    waiting: set[Key] = field(default_factory=set)
    seen_s: float = 0.0


class Books:
    """The books of one epoch. ttl_s: a replica silent for so long no longer counts as backlogged."""

    def __init__(self, epoch: str, ttl_s: float, most_clients: int = MOST_CLIENTS) -> None:
        self.epoch = epoch
        self.reports = 0
        self._ttl_s = ttl_s
        self._most = most_clients
        self._version = 0
        self._replicas: dict[str, Replica] = {}
        self._dropped: set[str] = set()  # silent ones: what they send again may be in the books already
        self._accounts: OrderedDict[Key, Account] = OrderedDict()  # the last changed last
        self._heaps: dict[Key, list[tuple[float, Key]]] = {}  # of those that wait, by lane and group
        self._in_heap: set[Key] = set()

    def report(self, name: str, report: dict[str, Any], now_s: float) -> dict[str, Any]:
        """Take a replica's report (`SharedCounters.report`), and answer what the others did."""
        self.reports += 1
        self._drop_silent(now_s)
        stranger = name not in self._replicas and (name in self._dropped or not report["join"])
        if report["epoch"] != self.epoch or stranger:
            self._dropped.discard(name)
            return {"epoch": self.epoch, "join": True}
        replica = self._replicas.setdefault(name, Replica())
        replica.seen_s = now_s
        if report["rows"]:
            self._version += 1
        brings = report["join"] and report["heard"] != self.epoch
        for lane, client, generation, own, mark, waiting, group in report["rows"]:
            account = self._account((lane, client), group)
            self._enter(replica, (lane, client), account, generation, own, mark, brings)
            self._wait(replica, (lane, client), account, waiting)
            self._touch((lane, client), account)
        return {
            "epoch": self.epoch,
            "join": False,
            "version": self._version,
            "replicas": len(self._replicas),
            "smallest": self._all_smallest(),
            "rows": self._changed(replica, report["since"]),
        }

    def _enter(
        self, replica: Replica, key: Key, account: Account, generation: int, own: float, mark: float, brings: bool
    ) -> None:
        known, before = replica.own.get(key, (generation, 0.0))
        if known != generation:  # the replica had forgotten the client and begins anew
            account.base, account.served = account.base + before, account.served - before
            before = 0.0
        replica.own[key] = (generation, own)
        account.served += own - before
        # From before this epoch a replica brings its mark; else its counter includes what others served in it.
        account.base = max(account.base, mark if brings else mark + own - account.served)

    def _account(self, key: Key, group: str) -> Account:
        account = self._accounts.get(key)
        if account is not None and account.group != group:  # the settings were changed: other counters, a new account
            self._drop(key)
            account = None
        if account is None:
            account = self._accounts[key] = Account(group=group)
            if len(self._accounts) > self._most:
                self._drop_oldest_idle()
        return account

    def _touch(self, key: Key, account: Account) -> None:
        account.version = self._version
        self._accounts.move_to_end(key)

    def _wait(self, replica: Replica, key: Key, account: Account, waiting: bool) -> None:
        if waiting == (key in replica.waiting):
            return
        if not waiting:
            replica.waiting.discard(key)
            account.waits_in -= 1
            return
        replica.waiting.add(key)
        account.waits_in += 1
        if key not in self._in_heap:
            self._in_heap.add(key)
            heapq.heappush(self._heaps.setdefault((key[0], account.group), []), (account.counter, key))

    def _all_smallest(self) -> list[list[Any]]:
        """[lane, group, smallest counter among its clients that wait somewhere]."""
        found = ((place, self._smallest(place)) for place in self._heaps)
        return [[*place, value] for place, value in found if value is not None]

    def _smallest(self, place: Key) -> float | None:
        """Entries of a heap may be too small, never too large."""
        heap = self._heaps[place]
        while heap:
            value, key = heap[0]
            account = self._accounts.get(key)
            if account is None or not account.waits_in or account.group != place[1]:
                heapq.heappop(heap)
                self._in_heap.discard(key)
            elif account.counter > value:
                heapq.heapreplace(heap, (account.counter, key))
            else:
                return value
        return None

    def _changed(self, replica: Replica, since: int) -> list[list[Any]]:
        """[lane, client, counter, whether it waits in another replica] of the clients changed after version `since`."""
        rows = []
        for key in reversed(self._accounts):
            account = self._accounts[key]
            if account.version <= since:
                break
            rows.append([*key, account.counter, account.waits_in > (key in replica.waiting)])
        return rows

    def _drop_silent(self, now_s: float) -> None:
        for name in [name for name, replica in self._replicas.items() if now_s - replica.seen_s > self._ttl_s]:
            replica = self._replicas.pop(name)
            self._dropped.add(name)
            self._version += 1
            for key, (_, own) in replica.own.items():
                if (account := self._accounts.get(key)) is not None:
                    account.base, account.served = account.base + own, account.served - own
            for key in list(replica.waiting):
                if (account := self._accounts.get(key)) is not None:
                    self._wait(replica, key, account, False)
                    self._touch(key, account)

    def _drop_oldest_idle(self) -> None:
        oldest = next((key for key, account in self._accounts.items() if not account.waits_in), None)
        if oldest is not None:
            self._drop(oldest)

    def _drop(self, key: Key) -> None:
        del self._accounts[key]
        for replica in self._replicas.values():
            replica.own.pop(key, None)
            replica.waiting.discard(key)

    def service(self, most: int) -> dict[str, dict[str, float]]:
        """The counters of the `most` clients that changed last, by lane."""
        found: dict[str, dict[str, float]] = {"online": {}, "offline": {}}
        for lane, client in itertools.islice(reversed(self._accounts), most):
            found[("online", "offline")[lane]][client] = self._accounts[lane, client].counter
        return found

    def totals(self) -> dict[str, Any]:
        """The books in short, for an operator."""
        return {
            "epoch": self.epoch,
            "reports": self.reports,
            "replicas": sorted(self._replicas),
            "clients": len(self._accounts),
            "smallest": self._all_smallest(),
        }
