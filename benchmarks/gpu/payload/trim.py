"""Cut a CUDA shared object down to what an sm_90 GPU (H100, H200) loads.

    python -m benchmarks.gpu.payload.trim IN OUT [--keep-places]

`--keep-places` only zeroes foreign code and leaves everything where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.payload import fatbin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--keep-places", action="store_true", help="zero foreign code, move nothing")
    args = parser.parse_args()
    data = bytearray(args.source.read_bytes())
    where = fatbin.section(data, fatbin.SECTION)
    if where is None:
        print(f"{args.source} holds no GPU code", file=sys.stderr)
        return 1
    kept = (fatbin.blank if args.keep_places else fatbin.cut)(data, *where)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    args.target.write_bytes(data)
    args.target.chmod(0o755)
    subprocess.run(["strip", "--strip-unneeded", args.target], check=True)
    print(f"{args.target.name}: {where[1] / 1e6:.1f} MB of GPU code, {kept / 1e6:.1f} MB kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
