"""Carries counters between a replica's engine and the hub: one round per period, beside the engine's steps.

engine --report--> hub --answer--> engine. Each leg has a timeout; a round that fails is counted and tried again with
the same report. The engine never waits for the hub: without answers it goes on with the counters it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("vllm.hybrid.ray")


class Reporter:
    """One per replica. find_hub: a blocking look-up of the hub's handle; it may raise."""

    def __init__(
        self,
        engine_core: Any,
        name: str,
        find_hub: Callable[[], Any],
        period_s: float,
        timeout_s: float,
        alone_after_s: float,
    ) -> None:
        self._core = engine_core
        self._name = name
        self._find_hub = find_hub
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._alone_after_s = alone_after_s
        self._hub: Any = None
        self._answered_s = 0.0
        self._is_alone = False
        self._epoch = ""
        self.rounds = 0
        self.failures = 0

    async def run(self) -> None:
        """Report until cancelled."""
        loop = asyncio.get_running_loop()
        self._answered_s = loop.time()
        while True:
            begin_s = loop.time()
            await self._try_round()
            await asyncio.sleep(max(0.0, begin_s + self._period_s - loop.time()))

    async def _try_round(self) -> None:
        try:
            await self._round()
        except Exception as error:
            self._hub = None
            self.failures += 1
            if not self._is_alone and self._silent_s() > self._alone_after_s:
                logger.warning("vllm_hybrid: no fairness hub (%s); counting alone until it is back", _named(error))
                await self._be_alone()

    async def _round(self) -> None:
        if self._hub is None:
            self._hub = await self._within(asyncio.to_thread(self._find_hub))
        report = await self._within(self._core.call_utility_async("hybrid_shared_report"))
        answer = await self._within(self._hub.report.remote(self._name, report))
        await self._within(self._core.call_utility_async("hybrid_shared_apply", answer))
        self.rounds += 1
        self._answered_s = asyncio.get_running_loop().time()
        self._is_alone = False
        if answer["epoch"] != self._epoch:
            logger.info("vllm_hybrid: replica %s shares its counters with the others", self._name)
            self._epoch = answer["epoch"]
            await self._round()  # the first answer of a hub asks for all that is known here

    async def _be_alone(self) -> None:
        try:
            await self._within(self._core.call_utility_async("hybrid_shared_alone"))
            self._is_alone = True
        except Exception as error:
            logger.warning("vllm_hybrid: the engine does not answer (%s)", _named(error))

    def _silent_s(self) -> float:
        return asyncio.get_running_loop().time() - self._answered_s

    async def _within(self, call: Any) -> Any:
        return await asyncio.wait_for(_awaited(call), self._timeout_s)


async def _awaited(call: Any) -> Any:
    return await call


def _named(error: Exception) -> str:
    return type(error).__name__
