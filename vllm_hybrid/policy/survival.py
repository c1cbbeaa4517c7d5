"""How long answers last: the chance that a request goes on, given its client and what it has generated so far.

Per client and lane a survival curve is kept over output tokens: S(k) is the share of answers longer than k tokens, by
the product-limit estimate of Kaplan and Meier, in which requests that still run count for as long as they have run
(without them only short answers would be known at first). A client of which little is known is taken for its lane,
and a lane for a heavy-tailed prior, each with the weight of a few answers. What matters to a request that has
generated g tokens is S(g + t) / S(g): it falls with every token, as nothing that ignores g does.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_hybrid.policy.request import ClientKey, Lane, RequestView

Floats = np.ndarray[Any, np.dtype[np.float32]]

LONGEST = 8192  # tokens; an answer that is longer is taken to last to its max_tokens
_WINDOW = 512  # answers of a client that its curve is made from
_PRIOR_TOKENS = 256.0  # the prior's median
_PRIOR_ANSWERS = 4.0  # its weight
_LANE_ANSWERS = 16.0  # weight of the lane in a client's curve
_CLIENTS = 128  # with a curve of their own; the one not asked for longest goes


@dataclass(slots=True)
class _Curve:
    row: int
    ended: deque[int] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    fresh: int = 0  # answers since it was drawn

    @property
    def due(self) -> bool:
        return self.fresh > 0 and (self.fresh >= 8 or self.fresh * 8 >= len(self.ended))


class Survival:
    """Survival curves of all clients, drawn anew when enough has been learned."""

    def __init__(self) -> None:
        self._table: Floats = np.empty((len(Lane) + _CLIENTS, LONGEST), np.float32)
        prior = 1.0 / (1.0 + np.arange(LONGEST) / _PRIOR_TOKENS)
        self._table[: len(Lane)] = prior
        self._prior = prior
        self._lanes = {lane: _Curve(int(lane)) for lane in Lane}
        self._clients: OrderedDict[ClientKey, _Curve] = OrderedDict()
        self._free = list(range(len(Lane), len(Lane) + _CLIENTS))

    def observe(self, key: ClientKey, tokens: int) -> None:
        """A request of the client ended by itself after so many output tokens."""
        for curve in (self._lanes[key[0]], self._own(key)):
            curve.ended.append(tokens)
            curve.fresh += 1

    def _own(self, key: ClientKey) -> _Curve:
        curve = self._clients.get(key)
        if curve is None:
            if not self._free:
                self._free.append(self._clients.popitem(last=False)[1].row)
            curve = self._clients[key] = _Curve(self._free.pop())
            self._table[curve.row] = self._table[int(key[0])]
        self._clients.move_to_end(key)
        return curve

    def refresh(self, running: Iterable[RequestView]) -> None:
        """Draw the curves that are due, with `running` as answers of at least what they have generated."""
        due: list[tuple[ClientKey | None, Lane, _Curve]] = []
        due += [(None, lane, curve) for lane, curve in self._lanes.items() if curve.due]
        due += [(key, key[0], curve) for key, curve in self._clients.items() if curve.due]
        if not due:
            return
        views = list(running)
        for key, lane, curve in due:
            going = [v.output_tokens for v in views if (v.key == key if key else v.key[0] is lane)]
            prior = self._table[int(lane)] if key else self._prior
            self._table[curve.row] = product_limit(curve.ended, going, prior, _LANE_ANSWERS if key else _PRIOR_ANSWERS)
            curve.fresh = 0

    def rows(self, views: Iterable[RequestView]) -> list[int]:
        """The row of `table` that holds each request's curve."""
        clients, lanes = self._clients, self._lanes
        found = []
        for view in views:
            curve = clients.get(view.key)
            found.append(lanes[view.key[0]].row if curve is None else curve.row)
        return found

    def goes_on(self, views: Sequence[RequestView], tokens: np.ndarray[Any, Any]) -> Floats:
        """Chance that each request generates more than so many further tokens: requests x tokens, or one for all.

        tokens: of shape (counts,) or (requests, counts).
        """
        rows = np.array(self.rows(views), np.intp)[:, None]
        done = np.array([v.output_tokens for v in views], np.intp)[:, None]
        limit = np.array([v.max_output_tokens for v in views], np.intp)[:, None]
        then = done + tokens
        known = self._table[rows, np.minimum(then, LONGEST - 1)] / self._table[rows, np.minimum(done, LONGEST - 1)]
        known[then >= limit] = 0.0
        return known


def product_limit(ended: Iterable[int], going: Iterable[int], prior: np.ndarray[Any, Any], weight: float) -> Floats:
    """S(0..LONGEST-1) from answers that ended, others that go on, and a prior that counts like `weight` answers."""
    ends = np.bincount(np.clip(np.fromiter(ended, np.intp), 0, LONGEST), minlength=LONGEST + 1)[:LONGEST]
    lasted = np.concatenate((np.fromiter(ended, np.intp), np.fromiter(going, np.intp)))
    lengths = np.bincount(np.clip(lasted, 0, LONGEST), minlength=LONGEST + 1)
    at_risk = lengths[::-1].cumsum()[::-1][:LONGEST].astype(float)  # that reached k tokens
    before = np.concatenate(([1.0], prior[:-1]))
    hazard = (ends + weight * (before - prior)) / np.maximum(at_risk + weight * before, 1e-9)
    return np.maximum(np.cumprod(1.0 - np.minimum(hazard, 1.0)), 1e-6).astype(np.float32)
