"""vLLM's general plugin: brings the flags in, and switches the front end on where our scheduler is selected.

vLLM calls `register` in every process of a server (API servers, engine cores, workers), catches nothing that
it raises, and may call it more than once.  So it raises nothing, does its work once, and has no effect on a
server that runs another scheduler, with one exception: the tile registers of AMX processors are asked for,
because a CPU worker whose first forward pass holds a single token would die without them.
"""

from __future__ import annotations

import logging
from functools import cache, wraps
from typing import Any

from vllm_hybrid import compat
from vllm_hybrid.settings import SETTINGS_KEY, is_selected, settings_of, wrap

logger = logging.getLogger("vllm.hybrid.plugin")  # a child of vLLM's logger, so it shares its handlers and level


@cache
def register() -> None:
    """Entry point of the group ``vllm.general_plugins``."""
    for extend in (_init_amx, _extend_engine_args):
        try:
            extend()
        except Exception:
            logger.exception("vllm_hybrid: %s failed; this process goes on without it", extend.__name__)


def _init_amx() -> None:
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        torch.cpu._init_amx()


def _extend_engine_args() -> None:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_hybrid.serving.flags import add_flags

    add_cli_args, create_engine_config = EngineArgs.add_cli_args, EngineArgs.create_engine_config

    @wraps(add_cli_args)
    def add_cli_args_and_ours(parser: Any) -> Any:
        return add_flags(add_cli_args(parser))

    @wraps(create_engine_config)
    def activate_and_create(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_selected(self.scheduler_cls):
            return create_engine_config(self, *args, **kwargs)
        _activate(self)
        config = create_engine_config(self, *args, **kwargs)
        _decide_cache_form(config)
        return config

    EngineArgs.add_cli_args = staticmethod(add_cli_args_and_ours)
    EngineArgs.create_engine_config = activate_and_create


def _decide_cache_form(config: Any) -> None:
    """One line that says which form, and why."""
    if settings_of(config).cache != "off":
        from vllm_hybrid.cache.start import prepare

        logger.info("vllm_hybrid: %s", prepare(config))


def _activate(engine_args: Any) -> None:
    """Our scheduler is selected: check vLLM and the settings here, where the caller still sees the error."""
    from vllm_hybrid.serving import client_limits, request_check

    compat.check((*compat.ENTRY, *compat.SCHEDULER))
    engine_args.additional_config = wrap(engine_args.additional_config)
    request_check.install_in_engine_client()
    client_limits.install(engine_args.additional_config[SETTINGS_KEY].config)
    logger.info("vllm_hybrid: %s", engine_args.additional_config[SETTINGS_KEY])
