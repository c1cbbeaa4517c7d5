"""Lets the front end ask: the engine core looks utility calls up by name, and answers them between two steps."""

from __future__ import annotations


def attach() -> None:
    """Add our questions to this process's engine core."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.hybrid_drain = lambda core, named=(): core.scheduler.report.drain(named)
    EngineCore.hybrid_status = lambda core: core.scheduler.report.status()
    EngineCore.hybrid_clients = lambda core, most: core.scheduler.report.clients(most)
    EngineCore.hybrid_request = lambda core, request_id: core.scheduler.report.request(request_id)
    EngineCore.hybrid_config = lambda core: core.scheduler.live.show()
    EngineCore.hybrid_configure = lambda core, patch, version: core.scheduler.live.change(patch, version)
    EngineCore.hybrid_revert = lambda core, to, version: core.scheduler.live.revert(to, version)
    EngineCore.hybrid_shared_report = lambda core: core.scheduler.sharing.report()
    EngineCore.hybrid_shared_apply = lambda core, answer: core.scheduler.sharing.apply(answer)
    EngineCore.hybrid_shared_alone = lambda core: core.scheduler.sharing.alone()
    EngineCore.hybrid_load = lambda core: core.scheduler.sharing.load()
