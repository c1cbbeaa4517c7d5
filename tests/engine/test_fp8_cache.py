"""On the real engine: the fp8 half form on a model with rotated keys and grouped heads, beside vLLM's own fp8 cache."""

from __future__ import annotations

import statistics

import pytest

from tests.engine.conftest import save_tokenizer
from tests.engine.engines import mixed_load, running_engine, scheduler_of
from tests.engine.half_blocks import answers, check_books, half_cache

pytestmark = pytest.mark.e2e

LOAD = mixed_load(2, offline=6, online=4)
TIGHT = {"num_gpu_blocks_override": 22, "max_model_len": 640, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def tiny_gqa(tmp_path_factory) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-gqa")
    torch.manual_seed(4)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    tokens = {"bos_token_id": 0, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens, initializer_range=0.15)).float().save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def test_it_is_no_further_from_stock_than_vllms_own_fp8_cache(tiny_gqa) -> None:
    apart = {}
    with running_engine(tiny_gqa, **TIGHT) as engine:
        stock = answers(engine, LOAD)
    with running_engine(tiny_gqa, **TIGHT, kv_cache_dtype="fp8") as engine:
        apart["vLLM's"] = statistics.median(answers(engine, LOAD).differences(stock))
    with running_engine(tiny_gqa, half_cache("fp8"), **TIGHT) as engine:
        scheduler = scheduler_of(engine)
        for rule in ("none", "odd", "restless", "all"):
            scheduler.begin(rule)
            apart[rule] = statistics.median(answers(engine, LOAD).differences(stock))
            check_books(engine)
        assert scheduler.found_tokens > 0
    print({name: f"{median:.1e}" for name, median in apart.items()})
    assert apart["none"] == 0 < apart["all"] <= apart["vLLM's"]
