"""The house rules that a reader can rely on: which room may import which, and how long a file may get.

The rooms are those of `docs/design/`: policy decides, the engine steers, serving shows. No arrow goes back up.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "vllm_hybrid"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# room -> the rooms it may import beside itself. A room is a folder of the package or a module at its top.
ARROWS: dict[str, set[str]] = {
    "__init__": {"config", "engine", "settings"},
    "config": set(),
    "compat": set(),
    "settings": {"config", "compat"},
    "config_docs": {"config"},
    "policy": {"config"},
    "cache": {"config", "settings", "compat"},
    "workload": set(),
    "engine": {"policy", "cache", "config", "settings", "compat"},
    "sim": {"engine", "policy", "cache", "config", "settings", "workload"},
    "profile": {"sim", "engine", "policy", "config", "settings", "workload"},
    "serving": {"engine", "policy", "config", "settings", "compat"},
    "ray": {"engine", "serving", "config", "settings", "compat"},
    "plugin": {"engine", "cache", "serving", "config", "settings", "compat"},
}
ARROWS["cli"] = ARROWS.keys() - {"__init__", "plugin"}
# Policy is a function of what it is shown: no engine, no tensors, no clock, no I/O, no logging.
IMPURE = {"vllm", "torch", "time", "datetime", "logging", "os", "io", "pathlib", "socket", "subprocess", "asyncio"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module a file names in an import, wherever in the file it does, absolute and dotted."""
    package = ("vllm_hybrid", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            # `from vllm_hybrid import compat` names the room only in its alias.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_imported(path: Path) -> set[str]:
    rooms = {module.split(".")[1] for module in imports(path) if module.startswith("vllm_hybrid.")}
    return rooms & ARROWS.keys() - {room_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_along_the_arrows(path: Path) -> None:
    room = room_of(path)
    assert room in ARROWS, f"{room} is a new room: say in ARROWS what it may import"
    against = rooms_imported(path) - ARROWS[room]
    assert not against, f"{name_of(path)} imports {sorted(against)}; {room} may import {sorted(ARROWS[room])}"


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) == "policy"], ids=name_of)
def test_policy_is_pure(path: Path) -> None:
    used = {module.split(".")[0] for module in imports(path)} & IMPURE
    assert not used, f"{name_of(path)} imports {sorted(used)}; a policy gets what it needs in its StepView"


def test_no_arrow_goes_back_up() -> None:
    TopologicalSorter(ARROWS).prepare()  # raises CycleError with the rooms of the circle


@pytest.mark.parametrize(
    "module", ["vllm_hybrid", "vllm_hybrid.config", "vllm_hybrid.policy.compose", "vllm_hybrid.workload"]
)
def test_importing_it_loads_neither_vllm_nor_torch(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'vllm', 'torch'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES, "one idea per file: what is the second one in this one?"
    too_long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert not too_long, f"functions over {MAX_FUNCTION_LINES} lines"
