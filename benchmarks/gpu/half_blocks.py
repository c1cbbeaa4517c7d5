"""Stage 4: vLLM with half blocks on this card: what stock answers, from hidden states and from K and V in fp8.

An OPT with random weights, wide ones, so that every token depends on those before it; one engine per form, all
requests of the half form, prompts in chunks. Log probabilities of the same tokens are compared with stock's on the same
attention kernels, and the seconds of the run stand beside them. Random weights give near ties, so tokens may part in
bfloat16; log probabilities before that may not. On a CPU (the rehearsal) the backend for CPUs does the same.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, Skip
from benchmarks.gpu.engine_runs import ENVIRONMENT, ON_A_CPU

REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS = 64, 900, 64
TINY_REQUESTS, TINY_PROMPT_TOKENS, TINY_ANSWER_TOKENS = 4, 60, 4
LEAST_LEFT_S = 120.0
FORMS = ("off", "hidden", "fp8")
WIDE = 0.15
SIZES = {"hidden_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 32, "ffn_dim": 8192, "vocab_size": 50272}
TINY_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 128, "vocab_size": 1000}


def make_model(folder: Path, rehearsal: bool) -> None:
    """A checkpoint, as wide as OPT-1.3B and eight layers deep."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    sizes = TINY_SIZES if rehearsal else SIZES
    torch.manual_seed(0)
    width = sizes["hidden_size"]
    std = WIDE * (TINY_SIZES["hidden_size"] / width) ** 0.5
    config = OPTConfig(**sizes, word_embed_proj_dim=width, max_position_embeddings=2048, init_std=std)
    OPTForCausalLM(config).to(torch.float32 if rehearsal else torch.bfloat16).save_pretrained(folder)


def always_half() -> type:
    """A scheduler that gives every request the half form."""
    from vllm_hybrid.cache.scheduler import HalfBlockScheduler

    class AlwaysHalf(HalfBlockScheduler):
        def takes_half(self, request: Any) -> bool:
            return self.blocks is not None

        def moves_to_kv(self, request: Any) -> bool:
            return False

    return AlwaysHalf


def answered(bench: Bench, folder: Path, form: str) -> tuple[list[list[int]], list[list[float]], float]:
    """Tokens and log probabilities of every request, and the seconds that all took together."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.distributed import cleanup_dist_env_and_memory

    if bench.rehearsal:
        size: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 24, "enforce_eager": True, "dtype": "float32"}
        requests, prompt, tokens = TINY_REQUESTS, TINY_PROMPT_TOKENS, TINY_ANSWER_TOKENS
    else:
        size = {"gpu_memory_utilization": 0.6, "dtype": "bfloat16", "attention_config": {"backend": "TRITON_ATTN"}}
        requests, prompt, tokens = REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS
    llm = LLM(
        str(folder), skip_tokenizer_init=True, max_num_batched_tokens=512, max_model_len=2048,
        max_num_seqs=64, block_size=32, scheduler_cls=always_half(), additional_config={"hybrid": {"cache": form}},
        **size,
    )  # fmt: skip
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=0, detokenize=False)
    prompts: list[Any] = [
        TokensPrompt(prompt_token_ids=[(7 * i + 13 * j) % 900 + 50 for j in range(prompt + i)]) for i in range(requests)
    ]
    llm.generate(prompts[:2], params, use_tqdm=False)
    begin = time.perf_counter()
    samples = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    seconds = time.perf_counter() - begin
    logprobs = [[at[token].logprob for token, at in zip(s.token_ids, s.logprobs, strict=True)] for s in samples]
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return [list(sample.token_ids) for sample in samples], logprobs, seconds


def run(bench: Bench) -> None:
    """Stock, then each form; the file is written after each."""
    if not bench.rehearsal and os.environ.get("VP_PLAN") == "none":
        raise Skip("vLLM did not pass its check on this machine (benchmarks/gpu/payload/setup.sh)")
    os.environ.update(ENVIRONMENT | (ON_A_CPU if bench.rehearsal else {}))
    try:
        import vllm  # noqa: F401
    except ImportError as missing:
        raise Skip(f"no vLLM here: {missing}") from None
    with tempfile.TemporaryDirectory() as folder:  # a gigabyte that nobody needs afterwards
        make_model(Path(folder), bench.rehearsal)
        _compare(bench, Path(folder))


def _compare(bench: Bench, folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    stock: Any = None
    for form in FORMS:
        if not bench.rehearsal and bench.time_left_s() < LEAST_LEFT_S:
            break
        tokens, logprobs, seconds = answered(bench, folder, form)
        stock = stock or (tokens, logprobs)
        apart, same_tokens = [], 0
        for mine, theirs, ours, stocks in zip(tokens, stock[0], logprobs, stock[1], strict=True):
            same = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), len(mine))
            same_tokens += same
            apart += [abs(a - b) for a, b in zip(ours[:same], stocks[:same], strict=True)]
        rows.append(
            {
                "cache": form,
                "seconds": seconds,
                "tokens": sum(map(len, tokens)),
                "before_the_first_other_token": same_tokens,
                "median_logprob_difference": statistics.median(apart) if apart else None,
                "max_logprob_difference": max(apart, default=None),
            }
        )
        print(f"  {json.dumps(rows[-1])}", flush=True)
        bench.write("half_blocks", model="tiny" if bench.rehearsal else "8 layers of opt-1.3b", rows=rows)
