"""Spares `ray.serve.llm` the download tasks of a model that lies in a local folder.

They find nothing to download, and each is a process that imports vLLM: 15 seconds and 750 MB per replica.
"""

from __future__ import annotations

from ray.llm._internal.common.callbacks.base import CallbackBase


class LocalModel(CallbackBase):
    """For `LLMConfig.callback_config`."""

    async def on_before_node_init(self) -> None:
        """Nothing to fetch."""
        self.ctx.run_init_node = False
