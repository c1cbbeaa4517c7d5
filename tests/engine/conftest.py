"""Tiny random models for real engines that run in the test's own process.

Weights are drawn wide (0.3 instead of 0.02), so that the greedy token depends on every token before it: a wrong KV
entry changes the output. Two heads of 32, the smallest that vLLM's CPU attention takes.
"""

import json
import os
from pathlib import Path

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

VOCAB = 1000
HIDDEN = 64
LAYERS = 2
LORA_RANK = 8


def save_tokenizer(folder: Path) -> None:
    """One token per printable character, the rest of the vocabulary filled with words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127))]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_opt(tmp_path_factory) -> str:
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path_factory.mktemp("tiny-opt")
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=2048,
        init_std=0.3,
    )
    OPTForCausalLM(config).float().save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def three_loras(tmp_path_factory, tiny_llama) -> list:
    """Three adapters for `tiny_llama`, as requests name them."""
    import torch
    from safetensors.torch import save_file
    from vllm.lora.request import LoRARequest

    requests = []
    for number, name in enumerate("ABC", start=1):
        folder = tmp_path_factory.mktemp(f"lora-{name}")
        torch.manual_seed(10 + number)
        weights = {}
        for layer in range(LAYERS):
            for module in ("q_proj", "v_proj"):
                at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                weights[f"{at}.lora_A.weight"] = torch.randn(LORA_RANK, HIDDEN) * 0.3
                weights[f"{at}.lora_B.weight"] = torch.randn(HIDDEN, LORA_RANK) * 0.3
        save_file(weights, folder / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": LORA_RANK,
            "lora_alpha": 16,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
            "base_model_name_or_path": tiny_llama,
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        requests.append(LoRARequest(name, number, str(folder)))
    return requests
