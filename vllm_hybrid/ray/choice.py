"""Which replica a request goes to. Pure: the router (`router.py`) brings loads and candidates.

Two replicas are drawn and the better one is taken (power of two choices), so that many routers with the same picture
do not all run to one replica. Better is, for an online request, where deadlines hold, fewest online requests per slot
stand before it, and fewest of its own client are under way; offline work does not count, as it gives way. For an
offline request it is where most blocks are free and least work stands. A replica that was sent the same prompt head
is preferred to both, as its prefix cache holds it, until it is fuller than the better one by `imbalance`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

MOST_PREFIXES = 10_000  # remembered; of more, those used longest ago are forgotten


@dataclass(frozen=True, slots=True)
class Routed:
    """What a router sees of a request. prefix: head of the prompt; empty where it is not seen."""

    client: str = "default"
    online: bool = True
    prefix: str = ""


class Chooser:
    """One router's memory: what it sent since the last look at a replica's load, and where prefixes are."""

    def __init__(self, imbalance: float, random: Random | None = None) -> None:
        self._imbalance = imbalance
        self._random = random or Random()
        self._look: dict[str, float] = {}
        self._sent: dict[str, Counter[bool]] = {}  # since that look, by whether online
        self._under_way: Counter[tuple[str, str]] = Counter()  # (replica, client)
        self._prefixes: OrderedDict[int, str] = OrderedDict()

    def rank(self, request: Routed, loads: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Candidates, the best one first; `loads` has the last known load of each."""
        names = list(loads)
        drawn = self._random.sample(names, min(2, len(names)))
        drawn.sort(key=lambda name: self._cost(request, name, loads[name]))
        home = self._prefixes.get(hash(request.prefix)) if request.prefix else None
        if home is not None and home in loads:
            fill = self._fill(request, drawn[0], loads[drawn[0]])
            if self._fill(request, home, loads[home]) <= fill + self._imbalance:
                drawn = [home, *(name for name in drawn if name != home)]
        return drawn + [name for name in names if name not in drawn]

    def _fill(self, request: Routed, name: str, load: Mapping[str, float]) -> float:
        """Requests that stand before this one, per slot."""
        slots = load.get("slots", 0.0) or 1.0
        sent = self._since(name, load)
        online = load.get("online_waiting", 0.0) + load.get("online_running", 0.0) + sent[True]
        if request.online:
            return online / slots
        offline = load.get("offline_waiting", 0.0) + load.get("offline_running", 0.0) + sent[False]
        return (online + offline) / slots

    def _cost(self, request: Routed, name: str, load: Mapping[str, float]) -> tuple[float, ...]:
        fill = self._fill(request, name, load)
        blocks = load.get("blocks", 0.0) or 1.0
        used = 1.0 - load.get("free_blocks", blocks) / blocks
        own = self._under_way[name, request.client]
        if request.online:
            return float(load.get("slack_s", 0.0) < 0), fill, own, used
        return fill + used, own

    def _since(self, name: str, load: Mapping[str, float]) -> Counter[bool]:
        look = load.get("look", 0.0)
        if self._look.get(name) != look:
            self._look[name] = look
            self._sent[name] = Counter()
        return self._sent[name]

    def sent(self, request: Routed, name: str) -> None:
        """The request was sent to a replica."""
        self._sent.setdefault(name, Counter())[request.online] += 1
        self._under_way[name, request.client] += 1
        if request.prefix:
            self._prefixes[hash(request.prefix)] = name
            self._prefixes.move_to_end(hash(request.prefix))
            if len(self._prefixes) > MOST_PREFIXES:
                self._prefixes.popitem(last=False)

    def ended(self, request: Routed, name: str) -> None:
        """It was answered, or failed."""
        self._under_way[name, request.client] -= 1
        if self._under_way[name, request.client] <= 0:
            del self._under_way[name, request.client]

    def keep(self, names: Sequence[str]) -> None:
        """Forget replicas that are gone."""
        for gone in self._look.keys() - set(names):
            del self._look[gone]
            self._sent.pop(gone, None)
