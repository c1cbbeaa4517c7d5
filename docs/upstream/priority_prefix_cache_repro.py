"""vLLM 0.32: `--scheduling-policy priority` with prefix caching returns wrong tokens after an in-step preemption.

Runs on stock vLLM alone, CPU or GPU, in about a minute: a random two-layer OPT, three greedy requests, 18 free blocks.
Each request is served alone first; then all three together. Greedy answers must not depend on company, but A's do.

    python priority_prefix_cache_repro.py            # prints A's tokens, alone and in company, and exits with 1
    python priority_prefix_cache_repro.py --evict    # the same with the eviction proposed in the report: exits with 0
"""

import os
import random
import sys
import tempfile

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

import torch
from transformers import OPTConfig, OPTForCausalLM
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine

BLOCK_SIZE = 32
REQUESTS = (  # name, prompt tokens, output tokens, priority (larger: less important); they arrive one step apart
    ("A", 400, 8, 5),
    ("B", 4, 40, 0),
    ("C", 130, 12, 0),
)


def make_engine(folder: str) -> LLMEngine:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=1000,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        init_std=0.3,  # wide: the greedy token depends on all tokens before it
    )
    OPTForCausalLM(config).float().save_pretrained(folder)
    arguments = EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        async_scheduling=False,
        scheduling_policy="priority",
        enable_prefix_caching=True,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=19,
        kv_cache_memory_bytes=64 << 20,
        max_model_len=448,
        max_num_seqs=8,
        max_num_batched_tokens=160,
        long_prefill_token_threshold=96,
    )
    return LLMEngine.from_engine_args(arguments)


def serve(engine: LLMEngine, requests: list[tuple], prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    """Tokens of each request; one request arrives per step."""
    engine.engine_core.engine_core.scheduler.reset_prefix_cache()
    answers, waiting = {}, list(requests)
    while waiting or engine.has_unfinished_requests():
        if waiting:
            name, _, max_tokens, priority = waiting.pop(0)
            params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
            engine.add_request(name, {"prompt_token_ids": prompts[name]}, params, priority=priority)
        for output in engine.step():
            answers[output.request_id] = list(output.outputs[0].token_ids)
    return answers


def evict_what_was_not_computed(scheduler) -> None:
    """The proposed fix, from outside: forget the victim's blocks beyond what it has computed."""
    preempt = scheduler._preempt_request

    def preempt_and_evict(request, timestamp, drop_stale_output=False):
        manager = scheduler.kv_cache_manager
        for blocks in manager.get_blocks(request.request_id).blocks:
            beyond = blocks[request.num_computed_tokens // BLOCK_SIZE :]
            manager.evict_blocks({block.block_id for block in beyond if block.block_hash is not None})
        preempt(request, timestamp, drop_stale_output)

    scheduler._preempt_request = preempt_and_evict


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(folder)
    if "--evict" in sys.argv:
        evict_what_was_not_computed(engine.engine_core.engine_core.scheduler)
    rng = random.Random(0)
    prompts = {name: [rng.randrange(10, 1000) for _ in range(tokens)] for name, tokens, *_ in REQUESTS}
    alone = {}
    for request in REQUESTS:
        alone |= serve(engine, [request], prompts)
    together = serve(engine, list(REQUESTS), prompts)
    for name in alone:
        verdict = "equal" if alone[name] == together[name] else "DIFFERENT"
        print(f"{name}  alone {alone[name][:8]}  together {together[name][:8]}  {verdict}")
    return int(alone != together)


if __name__ == "__main__":
    sys.exit(main())
