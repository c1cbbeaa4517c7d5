"""Stage 3: real vLLM with random weights: stock `fcfs` and `priority` against ours, on the same load, in one engine.

Online requests are a statistical twin of the Azure conversation trace, beside a backlog of offline ones that is there
from the start. The engine is started once and the scheduler object exchanged in it, so that its minutes are paid once;
in between nothing runs. Besides latencies and throughput: what `schedule()` itself took on the host, with async
scheduling as vLLM sets it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, Skip
from benchmarks.gpu.shapes import MODELS, Shape

MODEL = "llama-2-13b"
ONLINE_S, ONLINE_SCALE, OFFLINE_REQUESTS, MOST_MODEL_LEN = 50.0, 0.7, 150, 2048
OFFLINE_CLIENT = "backlog"
CONTENDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"stock": "fcfs"},
    "priority": {"stock": "priority"},
    "hybrid": {"hybrid": {}},
    "hybrid, 0.2 s between tokens": {"hybrid": {"slo": {"online": {"ttft_s": 2.0, "tbt_s": 0.2}}}},
}
LEAST_LEFT_S = 180.0
FIGURES = ("p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms", "p50_worst_gap_ms", "p99_worst_gap_ms")
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
ON_A_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def model_config(shape: Shape, tiny: bool) -> dict[str, Any]:
    """A config.json without weights; OPT for the rehearsal, which vLLM's CPU build takes at any size."""
    if tiny:
        return {
            "model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "ffn_dim": 128, "vocab_size": 1000, "max_position_embeddings": 2048,
            "word_embed_proj_dim": 64, "do_layer_norm_before": True, "activation_function": "relu",
            "torch_dtype": "float32", "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
        }  # fmt: skip
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn, "vocab_size": shape.vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


@contextmanager
def engine(bench: Bench, folder: Path) -> Iterator[Any]:
    """vLLM's engine in this process, with random weights."""
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    from vllm_hybrid import engine_kwargs

    if bench.rehearsal:
        size = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 24, "enforce_eager": True}
    else:
        size = {"dtype": "bfloat16", "gpu_memory_utilization": 0.9, **json.loads(os.environ.get("VP_ARGS") or "{}")}
    arguments = EngineArgs(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=MOST_MODEL_LEN,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
        **size,
        **engine_kwargs(),
    )
    config = arguments.create_engine_config()
    started = LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False)
    try:
        yield started
    finally:
        started.engine_core.shutdown()
        del started
        gc.collect()
        cleanup_dist_env_and_memory()


def exchange_scheduler(core: Any, stock: str | None, hybrid: dict[str, Any]) -> None:
    """Put another scheduler into an idle engine."""
    from vllm_hybrid import engine_kwargs
    from vllm_hybrid.settings import wrap

    config, old = core.vllm_config, core.scheduler
    assert not old.has_unfinished_requests()
    config.scheduler_config.policy = stock or "fcfs"
    config.scheduler_config.scheduler_cls = None if stock else engine_kwargs()["scheduler_cls"]
    config.additional_config = wrap({"hybrid": hybrid})
    core.scheduler = config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=old.kv_cache_config,
        structured_output_manager=core.structured_output_manager,
        include_finished_set=False,
        log_stats=False,
        block_size=old.block_size,
        hash_block_size=old.hash_block_size,
    )


def load(rehearsal: bool, seed: int = 0) -> list[Any]:
    """Online requests as they arrive, and a backlog from the first moment on."""
    from vllm_hybrid.sim.records import SimRequest
    from vllm_hybrid.workload import load_profile

    twin = load_profile("azure_conv_2023")
    online = twin.sample(seed, ONLINE_S, ONLINE_SCALE)
    backlog = twin.sample(seed + 1, min(twin.duration_s, 20 * ONLINE_S))[:OFFLINE_REQUESTS]
    requests = []
    for number, (row, lane) in enumerate([*((r, "online") for r in online), *((r, "offline") for r in backlog)]):
        prompt, output = min(row.prompt_tokens, 1500), min(row.output_tokens, 500)
        arrival_s = row.arrival_s if lane == "online" else 0.0
        if rehearsal:
            prompt, output, arrival_s = 1 + prompt // 50, 1 + output // 50, arrival_s / 50
        client = OFFLINE_CLIENT if lane == "offline" else "ab"[number % 2]
        requests.append(
            SimRequest(f"r{number}", arrival_s, prompt, output, client, lane, priority=int(lane == "offline"))
        )
    return requests[:: 8 if rehearsal else 1]


def measure(started: Any, name: str, contender: dict[str, Any], requests: list[Any]) -> dict[str, Any]:
    """One contender's run."""
    from benchmarks.live_engine import Clock, serve
    from vllm_hybrid.sim.measure import Slo
    from vllm_hybrid.sim.measure import measure as figures_of
    from vllm_hybrid.sim.records import Contender, EngineSettings

    core = started.engine_core.engine_core
    while core.scheduler.has_requests():
        started.step()  # the worker still has to hear who finished last
    exchange_scheduler(core, contender.get("stock"), contender.get("hybrid", {}))
    took_us = _timed_schedule(core.scheduler)
    served = serve(started, Contender(name, **contender), EngineSettings(), requests, Clock("wall"))
    figures = figures_of(served.run, Slo())
    lanes = {lane: {key: found.get(key) for key in (*FIGURES, "completed")} for lane, found in figures["lanes"].items()}
    return {
        "contender": name,
        "scheduler": type(core.scheduler).__name__,
        "seconds": served.run.end_s,
        "total_token_throughput": figures["total_token_throughput"],
        "offline_done_s": max((r.finished_s for r in served.run.requests if r.request.lane == "offline"), default=None),
        "schedule_us_p50": statistics.median(took_us),
        "schedule_us_max": max(took_us),
        "steps": len(served.samples),
        "lanes": lanes,
    }


def _timed_schedule(scheduler: Any) -> list[float]:
    """Microseconds of every `schedule()` from now on."""
    own, took_us = type(scheduler).schedule, []

    class Timed(type(scheduler)):  # type: ignore[misc]
        def schedule(self, *arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            step = own(self, *arguments, **keywords)
            took_us.append((time.perf_counter() - begin) * 1e6)
            return step

    Timed.__name__ = type(scheduler).__name__
    scheduler.__class__ = Timed
    return took_us


def run(bench: Bench) -> None:
    """Every contender on the same load; the file is written after each."""
    if not bench.rehearsal and os.environ.get("VP_PLAN") == "none":
        raise Skip("vLLM did not pass its check on this machine (benchmarks/gpu/payload/setup.sh)")
    os.environ.update(ENVIRONMENT | (ON_A_CPU if bench.rehearsal else {}))
    try:
        import vllm  # noqa: F401
    except ImportError as missing:
        raise Skip(f"no vLLM here: {missing}") from None
    if not bench.rehearsal and bench.time_left_s() < LEAST_LEFT_S:
        raise Skip(f"an engine needs {LEAST_LEFT_S:.0f} s to be worth its start")
    shape = MODELS["tiny" if bench.rehearsal else MODEL]
    folder = bench.out / f"model-{shape.name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config(shape, bench.rehearsal)))
    requests, rows = load(bench.rehearsal), []
    begin = time.monotonic()
    with engine(bench, folder) as started:
        start_s = time.monotonic() - begin
        measure(started, "warm-up", CONTENDERS["fcfs"], requests[:8])
        asynchronous = started.vllm_config.scheduler_config.async_scheduling
        for name, contender in CONTENDERS.items():
            if bench.time_left_s() < 0:
                break
            rows.append(measure(started, name, contender, requests))
            print(f"  {name}: {json.dumps(rows[-1])}", flush=True)
            bench.write(
                "engine", model=shape.name, requests=len(requests), start_s=start_s, async_scheduling=asynchronous,
                attention=os.environ.get("VP_ARGS") or "vLLM's choice", rows=rows,
            )  # fmt: skip
