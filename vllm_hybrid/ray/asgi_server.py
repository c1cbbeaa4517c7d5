"""The second path: vLLM's complete HTTP server in every replica, mounted as the replica's ASGI application.

All routes of `vllm serve` are there, with `/metrics`, `/v1/hybrid/` and API keys; what a router sees is the request's
headers only.
"""

from __future__ import annotations

import types
from typing import Any

from vllm_hybrid.ray.llm_server import start_error
from vllm_hybrid.ray.replica import ReplicaDuties
from vllm_hybrid.ray.schema import RayConfig


class HybridAsgiServer:
    """One replica."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = RayConfig.model_validate(config)

    async def __serve_build_asgi_app__(self) -> Any:
        """Start the engine, serve a first request, and hand the application to Serve."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            args = self._arguments()
            engine_args = _engine_args(args)
            self._engine = AsyncLLM.from_engine_args(engine_args)
            tasks = await self._engine.get_supported_tasks()
        except Exception as error:
            raise start_error(self._config, error) from error
        app = build_app(args, tasks, self._engine.model_config)
        await init_app_state(self._engine, app.state, args, tasks)
        app.state.server = types.SimpleNamespace()  # vLLM's error handler writes to it
        self._duties = ReplicaDuties(self._engine, self._config)
        await self._duties.begin()
        return app

    def _arguments(self) -> Any:
        """vLLM's own command line, parsed: every default is that of `vllm serve`."""
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.plugins import load_general_plugins
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        from vllm_hybrid.settings import SCHEDULER_CLS, engine_kwargs

        load_general_plugins()
        args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--scheduler", "hybrid"])
        config = self._config
        settings = {
            **config.engine,
            **engine_kwargs(config.hybrid),
            "model": config.model,
            "served_model_name": [config.served_name],
        }
        for key, value in settings.items():
            if not hasattr(args, key):
                raise ValueError(f"engine.{key}: vLLM has no such argument")
            setattr(args, key, value)
        assert args.scheduler_cls == SCHEDULER_CLS
        return args

    async def check_health(self) -> None:
        """Serve's own check, beside the replica's (`ReplicaDuties`)."""
        await self._engine.check_health()

    async def record_routing_stats(self) -> dict[str, float]:
        """For the router."""
        return await self._duties.load()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the autoscaling policy."""
        return await self._duties.scaling_stats()


def _engine_args(args: Any) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs.from_cli_args(args)
