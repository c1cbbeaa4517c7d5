"""SchedulerOutputs as plain values, so that two schedulers can be compared step by step, every field.

Order is kept where vLLM keeps one (lists, dicts: the worker sees requests in that order); sets have none.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput


def frozen(value: Any) -> Any:
    """A copy of `value` that later changes to it cannot reach."""
    if isinstance(value, (list, tuple)):
        return tuple(value) if not value or isinstance(value[0], int) else tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return frozenset(value)
    if is_dataclass(value):
        return {f.name: frozen(getattr(value, f.name)) for f in fields(value)}
    return value


def first_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """The first field in which two frozen steps differ, in words; None if they are equal."""
    for name, value in theirs.items():
        if ours[name] != value:
            return f"{name}: {value!r} != {ours[name]!r}"
    return None


class Recorder:
    """Collects the steps of one scheduler."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def __call__(self, step: SchedulerOutput) -> None:
        self.steps.append(frozen(step))
