"""Fair, SLO-aware scheduling of online and offline work on unmodified vLLM.

Importing this package imports neither vLLM nor torch; the public names below load what they need on first use.

* ``Scheduler``       factory for vLLM's ``scheduler_cls="vllm_hybrid.Scheduler"``: picks the sync or async class
* ``engine_kwargs``   keyword arguments for ``vllm.LLM(...)`` / ``AsyncEngineArgs(...)``
* ``HybridConfig``    the settings schema (pydantic)
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["HybridConfig", "Scheduler", "__version__", "engine_kwargs"]

_LAZY = {
    "Scheduler": ("vllm_hybrid.engine.scheduler", "make_scheduler"),
    "engine_kwargs": ("vllm_hybrid.settings", "engine_kwargs"),
    "HybridConfig": ("vllm_hybrid.config", "HybridConfig"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'vllm_hybrid' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)
