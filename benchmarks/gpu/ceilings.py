"""Stage 0: the two ceilings of this very card, on random data: copy bandwidth and bf16 matrix rate.

On zeros both come out too high, and datasheets are higher still. Everything else is reported as a share of these.
"""

from __future__ import annotations

import torch

from benchmarks.gpu.bench import Bench


def run(bench: Bench) -> None:
    """Fill `bench.ceilings`."""
    size, side = (1 << 16, 256) if bench.rehearsal else (1 << 31, 8192)
    source = torch.empty(size, device=bench.device, dtype=torch.int8).random_()
    target = torch.empty_like(source)
    copy = bench.clock.measure(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty_like(a)
    product = bench.clock.measure(lambda: torch.mm(a, b, out=c))
    bench.ceilings = {
        "copy_gbs": round(2 * size / copy.ms / 1e6, 6),
        "matmul_tflops": round(2 * side**3 / product.ms / 1e9, 6),
    }
    bench.write("ceilings")
