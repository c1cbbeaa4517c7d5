"""Fetches what vLLM's own tests need and our repository does not carry.

The tests are in vLLM's source distribution, of the version that is installed. Some of them inspect multimodal models,
which import torchvision; its builds on the package index are CUDA builds that break serving on the CPU, so it goes
to a folder that only these tests see. Both are fetched by pip, once, into a cache outside git.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CONFORMANCE_CACHE", ROOT / ".cache" / "conformance"))
TORCHVISION = "torchvision==0.28.0"  # the one for torch 2.13
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def fetch_tests() -> Path:
    """The folder that holds vLLM's `tests` package."""
    version = importlib.metadata.version("vllm").partition("+")[0]
    home = CACHE / f"vllm-{version}"
    if home.exists():
        return home
    CACHE.mkdir(parents=True, exist_ok=True)
    # pip asks a source distribution for its metadata even when it only downloads it: without isolation, or its build
    # environment would bring a CUDA torch; with a target device and a version, or it would look for a compiler and git.
    build = {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version}
    source_only = ("--no-binary", ":all:", "--no-build-isolation", "--no-deps")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = (*PIP, "download", *source_only, "--dest", scratch, f"vllm=={version}")
        subprocess.run(command, check=True, env=os.environ | build)
        top = f"vllm-{version}"
        with tarfile.open(Path(scratch) / f"{top}.tar.gz") as archive:
            tests = [member for member in archive if member.name.startswith(f"{top}/tests/")]
            archive.extractall(scratch, members=tests, filter="data")
        (Path(scratch) / top).rename(home)
    return home


def fetch_torchvision() -> Path | None:
    """The folder that holds torchvision, unless the environment has one that works."""
    if importlib.util.find_spec("torchvision"):
        return None
    home = CACHE / TORCHVISION.replace("==", "-")
    if home.exists():
        return home
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        target = Path(scratch) / "site"
        subprocess.run((*PIP, "install", "--no-deps", "--target", target, TORCHVISION), check=True)
        # It registers shapes for operators of the CUDA build, which a CPU torch does not load.
        (target / "torchvision" / "_meta_registrations.py").write_text("")
        target.rename(home)
    return home
