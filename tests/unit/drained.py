"""One answer of ``hybrid_drain``, as an engine gives it."""

from __future__ import annotations

from typing import Any

DRAINED: dict[str, Any] = {
    "cache_blocks": {"kv": 30, "half": 4, "free": 66},
    "cache_requests": {"kv": 3, "half": 2},
    "requests": {
        "online": {"waiting": 3, "running": 2, "paused": 0},
        "offline": {"waiting": 100, "running": 1, "paused": 1},
    },
    "tokens": {"online": {"prompt": 50, "output": 7}, "offline": {"prompt": 500, "output": 70}},
    "preemptions": {"online": {"plan": 0, "no_block": 0}, "offline": {"plan": 1, "no_block": 1}},
    "recomputed_tokens": {"online": 0, "offline": 90},
    "pauses": {"online": {"step": 0, "slot": 0}, "offline": {"step": 3, "slot": 1}},
    "budget_tokens": {"granted": 100, "used": 60},
    "steps": {"stock": 1, "plan": 5, "reuse": 10, "fallback": 0},
    "contended_steps": {"stock": 0, "plan": 4, "reuse": 6, "fallback": 0},
    "shadow": {"none": 3},
    "policy_errors": 0,
    "bad_identity": 1,
    "predictor": {"error_ratio": 0.25, "samples": 12},
    "clients": [
        {
            "lane": "online",
            "client": "alice",
            "prompt": 50,
            "output": 7,
            "service": 64.0,
            "waiting": 3,
            "waiting_tokens": 30,
        },
        {
            "lane": "offline",
            "client": None,
            "prompt": 500,
            "output": 70,
            "service": 640.0,
            "waiting": 100,
            "waiting_tokens": 1000,
        },
    ],
    "waiting": {"online": {"own_queue": 2, "slots": 1}, "offline": {"own_queue": 90, "online_first": 10}},
    "waited_s": {"online": {"slots": 1.5}, "offline": {"online_first": 2.5}},
    "service_gap": {"online": 0.0, "offline": 12.0},
    "oldest_s": {"online": 0.5, "offline": 90.0},
    "service_gap_bound": {"online": 4096.0, "offline": None},
    "step_seconds": {"predicted": 0.9, "real": 1.0},
    "config_version": 1,
}
