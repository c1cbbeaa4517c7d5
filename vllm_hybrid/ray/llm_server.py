"""The server class for `ray.serve.llm`: Ray's own, with the duties of a replica of ours.

Relies on `LLMServer.start`, `self.engine._engine_client` (an `AsyncLLM`) and the two hooks for statistics, all of one
minor version of Ray (`errors.SUPPORTED_RAY`).
"""

from __future__ import annotations

from typing import Any

from ray.serve.llm import LLMServer

from vllm_hybrid.ray.errors import RayAppError
from vllm_hybrid.ray.replica import ReplicaDuties
from vllm_hybrid.ray.schema import RayConfig

SETTINGS = "vllm_hybrid"  # key in LLMConfig.experimental_configs


class HybridLLMServer(LLMServer):
    """One replica."""

    async def start(self) -> None:
        """Start the engine, serve a first request, take up the duties."""
        config = RayConfig.model_validate(self._llm_config.experimental_configs[SETTINGS])
        try:
            await super().start()
        except Exception as error:
            raise start_error(config, error) from error
        engine: Any = self.engine
        self._duties = ReplicaDuties(engine._engine_client, config)
        await self._duties.begin()

    async def record_routing_stats(self) -> dict[str, Any]:
        """For the router."""
        return await self._duties.load()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the autoscaling policy."""
        return await self._duties.scaling_stats()


def start_error(config: RayConfig, error: Exception) -> RayAppError:
    """One line that says which model did not start, and why."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RayAppError(f"model {config.model!r} did not start: {reason}")
