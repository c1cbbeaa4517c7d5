"""Which form a deployment gets, and that every obstacle alone is noticed and named."""

from dataclasses import replace

import pytest

from vllm_hybrid.cache.capability import CapabilityError, Decision, Deployment, decide

OPT = Deployment(hidden_size=5120, kv_heads=40, head_size=128)
LLAMA_3 = Deployment(hidden_size=4096, kv_heads=8, head_size=128, rotary=True)

# One change to OPT each: what it says, whether fp8 goes as well.
OBSTACLES = [
    ({"rotary": True}, "rotated (RoPE)", True),
    ({"key_norm": True}, "keys are normalised", True),
    ({"clipped_qkv": True}, "clipped", True),
    ({"tensor_parallel": 2, "kv_heads": 20}, "tensor parallelism (2)", True),
    ({"lora": True}, "LoRA", True),
    ({"kv_heads": 39}, "only 1.9 times as large", True),
    ({"affine_unknown": "NewForCausalLM"}, "keys of NewForCausalLM are not known", True),
    ({"backend": False}, "for CPUs and NVIDIA GPUs only", False),
    ({"other_attention": "FLASHINFER"}, "TRITON_ATTN, and FLASHINFER was named", False),
    ({"full_graphs": "FULL"}, "cudagraph_mode FULL): what a step does depends on its rows; choose PIECEWISE", False),
    ({"block_tokens": 24}, "blocks of 24 tokens", False),
    ({"plain_attention": False}, "plain full attention", False),
    ({"kv_connector": True}, "KV connector", False),
    ({"speculative": True}, "speculative decoding", False),
    ({"context_parallel": 2}, "context parallelism (2)", False),
    ({"kv_element_bytes": 1}, "only 1 times as large", False),
]


def test_a_model_without_obstacles_gets_hidden_whether_asked_or_not() -> None:
    assert decide("auto", OPT) == decide("hidden", OPT) == Decision("hidden", 2, "exact")
    assert str(decide("auto", OPT)) == "cache: KV and hidden, 2 half blocks per block (exact)"
    gemma_like = replace(OPT, hidden_size=3072, kv_heads=16, head_size=256)
    assert decide("auto", gemma_like).halves == 2  # 2.67, the rest of a block is lost


def test_off_is_off() -> None:
    assert decide("off", OPT).form == "kv"


@pytest.mark.parametrize(("change", "says", "fp8"), OBSTACLES, ids=[next(iter(o[0])) for o in OBSTACLES])
def test_each_obstacle_alone_forbids_hidden_and_is_named(change: dict, says: str, fp8: bool) -> None:
    model = replace(OPT, **change)
    with pytest.raises(CapabilityError) as refused:
        decide("hidden", model)
    message = str(refused.value)
    assert says in message and "\n" not in message and "auto, off" in message
    assert ("fp8 (lossy)" in message) == fp8
    assert decide("auto", model).form == "kv" and says in str(decide("auto", model))
    if fp8:
        assert decide("fp8", model) == Decision("fp8", 2, "lossy, asked for")
    else:
        with pytest.raises(CapabilityError, match="fp8 is not possible here"):
            decide("fp8", model)


def test_fp8_needs_room_for_the_scale_in_a_head() -> None:
    with pytest.raises(CapabilityError, match="heads of 72 numbers"):
        decide("fp8", replace(LLAMA_3, head_size=72))


def test_todays_models_get_fp8_only_if_it_is_named() -> None:
    assert decide("auto", LLAMA_3).form == "kv"
    assert "lossy, so it must be named" in str(decide("auto", LLAMA_3))
    assert decide("fp8", LLAMA_3).form == "fp8"
