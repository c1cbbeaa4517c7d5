"""What class of machine this is: figures without it mean nothing, and the served dtype follows from it."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

_BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")


def fast_dtype() -> str:
    """The dtype to serve in: bfloat16 on a CPU that cannot multiply it is several times slower than float32."""
    return "float32" if "cpu" in version("vllm") and not _bf16_in_hardware() else "bfloat16"


def describe() -> str:
    """The machine's class in one line, without its name."""
    model = _cpuinfo().get("model name", "unknown CPU")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    bf16 = "bf16 in hardware" if _bf16_in_hardware() else "no bf16"
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {model}, {bf16}, {memory_gib:.0f} GiB, vLLM {version('vllm')}"


def _bf16_in_hardware() -> bool:
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return any(flag in flags for flag in _BF16_FLAGS)


@cache
def _cpuinfo() -> dict[str, str]:
    """The first CPU's entry of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
