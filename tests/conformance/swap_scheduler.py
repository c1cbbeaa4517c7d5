"""A pytest plugin: vLLM's tests find other classes under the names of vLLM's schedulers.

It must be loaded before the tests are imported (`-p swap_scheduler`). Classes that vLLM derives from its own
schedulers keep their bases. A run in which none of the given classes was ever built proves nothing and fails.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from typing import Any

import pytest

built: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--sync-scheduler", required=True, metavar="MODULE:CLASS")
    group.addoption("--async-scheduler", required=True, metavar="MODULE:CLASS")


def load(spec: str) -> Any:
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def count_instances(cls: Any, spec: str) -> None:
    init = cls.__init__

    @functools.wraps(init)
    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        built[spec] += type(self) is cls
        init(self, *args, **kwargs)

    cls.__init__ = counting


def pytest_configure(config: pytest.Config) -> None:
    import vllm.v1.core.sched.async_scheduler as async_module
    import vllm.v1.core.sched.diffusion_scheduler  # noqa: F401  binds vLLM's class as its base first
    import vllm.v1.core.sched.scheduler as sync_module

    sync_spec, async_spec = config.getoption("sync_scheduler"), config.getoption("async_scheduler")
    sync_module.Scheduler = load(sync_spec)
    async_module.AsyncScheduler = load(async_spec)
    count_instances(sync_module.Scheduler, sync_spec)
    count_instances(async_module.AsyncScheduler, async_spec)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """vLLM tears the device down after every test unless told that there is none in use; that is most of the time."""
    for item in items:
        item.add_marker("skip_global_cleanup")


def pytest_sessionfinish(session: pytest.Session) -> None:
    in_other_processes = session.config.getoption("numprocesses", default=None)
    if not session.exitstatus and not built and not in_other_processes:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for spec in built:
        terminalreporter.write_line(f"{spec}: {built[spec]} built")
