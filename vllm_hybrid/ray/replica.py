"""What every replica does beside answering, on either path: warm up, share counters, watch its engine, tell its load.

A replica whose engine died ends its process at once. Serve's health check alone takes three failed checks, and until
then a dead replica answers fastest, so the router sends everything to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from vllm_hybrid.ray.reporter import Reporter
from vllm_hybrid.ray.schema import RayConfig

logger = logging.getLogger("vllm.hybrid.ray")

ENGINE_POLL_S = 0.2
WARM_UP_TOKENS = [4, 5, 6, 7]  # more than one: the first forward of a fresh CPU worker must not hold a single token
WARM_UP_TIMEOUT_S = 600.0
_ANSWER_WITHIN_S = 2.0


class ReplicaDuties:
    """The duties of one replica; `begin` when its engine is up."""

    def __init__(self, engine_client: Any, config: RayConfig) -> None:
        self._engine = engine_client
        self._config = config
        self._tasks: list[asyncio.Task[None]] = []
        self._load: dict[str, float] = {}
        self._looks = 0

    async def begin(self) -> None:
        """Serve a first request, then take up what goes on for ever."""
        await asyncio.wait_for(self._warm_up(), WARM_UP_TIMEOUT_S)
        self._tasks.append(asyncio.create_task(self._watch_engine()))
        if self._config.sharing.enabled:
            self._tasks.append(asyncio.create_task(self._reporter().run()))
        if self._config.path == "llm":
            from vllm_hybrid.ray.metrics import MetricsFeed

            feed = MetricsFeed(self._engine.engine_core, self._config.hybrid.metrics)
            self._tasks.append(asyncio.create_task(feed.run()))

    async def _warm_up(self) -> None:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True)
        prompt = {"prompt_token_ids": WARM_UP_TOKENS}
        async for _ in self._engine.generate(prompt, params, request_id="vllm-hybrid-warm-up"):
            pass

    def _reporter(self) -> Reporter:
        from ray import serve

        from vllm_hybrid.ray.hub import HUB

        sharing = self._config.sharing
        return Reporter(
            self._engine.engine_core,
            serve.get_replica_context().replica_id.unique_id,
            lambda: serve.get_deployment_actor(HUB),
            sharing.period_s,
            sharing.timeout_s,
            sharing.alone_after_s,
        )

    async def _watch_engine(self) -> None:
        while not self._engine.errored:
            await asyncio.sleep(ENGINE_POLL_S)
        logger.error("vllm_hybrid: the engine of this replica died; the replica leaves")
        os._exit(1)

    async def load(self) -> dict[str, float]:
        """The engine's load (`engine/sharing.py`), numbered; the last one known while a step takes long."""
        try:
            call = self._engine.engine_core.call_utility_async("hybrid_load")
            self._load = await asyncio.wait_for(call, _ANSWER_WITHIN_S)
            self._looks += 1
        except Exception as error:
            logger.debug("vllm_hybrid: no load (%s)", type(error).__name__)
        return {**self._load, "look": float(self._looks)}

    async def scaling_stats(self) -> dict[str, float]:
        """What `LanePolicy` decides by."""
        load = await self.load()
        return {
            "online": load.get("online_waiting", 0.0) + load.get("online_running", 0.0),
            "offline": load.get("offline_waiting", 0.0) + load.get("offline_running", 0.0),
            "late": float(load.get("slack_s", 0.0) < 0),
        }
