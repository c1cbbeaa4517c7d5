"""The attention backend for GPUs in a real engine, on a CPU: vLLM's Triton attention and our kernels, interpreted.

What it cannot show: how fast it is, CUDA graphs, and vLLM's second model runner, which runs on GPUs only.
"""

from __future__ import annotations

import pytest

from tests.engine.engines import Call, running_engine, scheduler_of
from tests.engine.half_blocks import answers, check_books, half_cache
from tests.interpreted import vllm_kernels_interpreted
from vllm_hybrid.cache import calibration, start

pytestmark = pytest.mark.e2e

LOAD = [Call(i, f"r{i}", tuple((13 * i + 7 * j) % 900 + 50 for j in range(20 + 15 * i)), 5) for i in range(4)]
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 40}


@pytest.fixture
def on_triton(monkeypatch):
    """Half blocks of this test are attended to by the backend for GPUs."""
    with vllm_kernels_interpreted() as module:
        from vllm.v1.worker.cpu_worker import CPUWorker

        from vllm_hybrid.cache.gpu_worker import ForGpus

        class OnTriton(ForGpus, CPUWorker):
            def with_half_form(self, stock, projection):
                slopes = None if stock.alibi_slopes is None else stock.alibi_slopes.tolist()
                shape = stock.num_heads, stock.head_size, stock.scale, stock.num_kv_heads
                return super().with_half_form(module.TritonAttentionImpl(*shape, slopes, None, "auto"), projection)

        for name, value in (("ROWS", 2), ("SHORT", 16), ("LONG", 48), ("REPEATS", 1)):  # the interpreter is slow
            monkeypatch.setattr(calibration, name, value)
        monkeypatch.setattr("tests.engine.alone.OnTriton", OnTriton, raising=False)
        monkeypatch.setitem(start.WORKERS, "vllm.v1.worker.cpu_worker.CPUWorker", "tests.engine.alone.OnTriton")
        yield


def test_hidden_requests_get_stocks_tokens(tiny_opt, on_triton) -> None:
    with running_engine(tiny_opt, **SMALL) as engine:
        stock = answers(engine, LOAD)
    with running_engine(tiny_opt, half_cache(), **SMALL) as engine:
        for rule in ("odd", "restless"):
            scheduler_of(engine).begin(rule)
            got = answers(engine, LOAD)
            check_books(engine)
            assert scheduler_of(engine).mixed_steps > 0 and (scheduler_of(engine).moves > 0) == (rule == "restless")
            worst = max(got.differences(stock))
            print(f"{rule}: log probabilities differ by {worst:.1e} at most")
            assert got.tokens == stock.tokens and worst <= 1e-5


def test_requests_in_fp8_get_what_they_get_on_a_cpu(tiny_llama, request) -> None:
    with running_engine(tiny_llama, half_cache("fp8"), **SMALL) as engine:
        scheduler_of(engine).begin("odd")
        on_cpu = answers(engine, LOAD)
    request.getfixturevalue("on_triton")
    with running_engine(tiny_llama, half_cache("fp8"), **SMALL) as engine:
        for rule in ("odd", "restless"):
            scheduler_of(engine).begin(rule)
            got = answers(engine, LOAD)
            check_books(engine)
            if rule == "odd":
                differences = sorted(got.differences(on_cpu))
                print(f"log probabilities differ by {differences[len(differences) // 2]:.1e}, {differences[-1]:.1e}")
                assert got.tokens == on_cpu.tokens and differences[len(differences) // 2] <= 1e-3
