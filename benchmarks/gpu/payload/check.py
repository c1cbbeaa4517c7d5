"""May this archive travel? Its size, and whether what a run needs is in it.

python -m benchmarks.gpu.payload.check ARCHIVE
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

MOST_MIB = 50  # the repository travels too, 64 MiB in all
NEEDED = [
    "vllm/__init__.py",
    "vllm/_C_stable_libtorch.abi3.so",
    "vllm/_moe_C_stable_libtorch.abi3.so",
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
    "vllm-0.32.0.dist-info/METADATA",
    "_spare/_C_stable_libtorch.abi3.so",
    "msgspec/__init__.py",
    "pydantic/__init__.py",
]


def problems(archive: Path, most_bytes: int = MOST_MIB * 2**20) -> list[str]:
    """What is wrong with the archive, one line each."""
    with tarfile.open(archive) as opened:
        names = {name.removeprefix("./") for name in opened.getnames()}
    found = [f"{name} is missing" for name in NEEDED if name not in names]
    if archive.stat().st_size > most_bytes:
        found.append(f"{archive.stat().st_size / 2**20:.1f} MiB are more than {most_bytes / 2**20:.0f}")
    return found


def main() -> int:
    archive = Path(sys.argv[1])
    found = problems(archive)
    print("\n".join(found) or f"{archive.name}: {archive.stat().st_size / 2**20:.1f} MiB, complete")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
