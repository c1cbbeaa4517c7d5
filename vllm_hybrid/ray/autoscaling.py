"""How many replicas: as many as online work asks for; offline work uses what is there, or asks up to a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def wanted_replicas(
    load: Mapping[str, float],
    now: int,
    *,
    least: int,
    online_per_replica: float,
    offline_max_replicas: int,
    offline_per_replica: float,
) -> int:
    """Replicas for `load`: requests `online` and `offline` in all replicas, and how many of these are `late`.

    A replica whose online requests miss their deadlines asks for one more than there are.
    """
    wanted = max(least, math.ceil(load.get("online", 0.0) / online_per_replica))
    if load.get("late", 0.0) > 0:
        wanted = max(wanted, now + 1)
    offline = math.ceil(load.get("offline", 0.0) / offline_per_replica)
    return max(wanted, min(offline, offline_max_replicas))


class LanePolicy:
    """Ray Serve's autoscaling policy; bounds and delays are applied by Serve around it."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        by_replica = context.aggregated_metrics or {}
        load = {name: sum(values.values()) for name, values in by_replica.items()}
        return float(wanted_replicas(load, context.current_num_replicas, **self._settings)), {}
