"""The Python API: `engine_kwargs` selects the scheduler, a bad request fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_hybrid import engine_kwargs

pytestmark = pytest.mark.e2e

SMALL = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 1 << 28,
    "max_num_seqs": 16,
}


def params(max_tokens: int = 8, **extra_args: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0, extra_args=extra_args or None)


def engine_args(model: Path, config: dict[str, Any]) -> Any:
    from vllm import AsyncEngineArgs

    return AsyncEngineArgs(model=str(model), **engine_kwargs(config, **SMALL))


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[Any]:
    from vllm import LLM

    limited = {"greedy": {"limits": {"max_waiting": 2}}, "talker": {"limits": {"tokens_per_minute": 20}}}
    engine = LLM(str(tiny_model), **engine_kwargs({"strict": True, "clients": limited}, **SMALL))
    yield engine
    engine.llm_engine.engine_core.shutdown()


def test_both_lanes_generate(llm: Any) -> None:
    prompts = ["w1 w2", "w3", "w4 w5 w6"]
    each = [params(), params(client="alice", lane="offline"), params(client="bob")]
    outputs = llm.generate(prompts, each, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [8, 8, 8]


def test_a_bad_request_raises_and_leaves_nothing_behind(llm: Any) -> None:
    each = [params(64), params(lane="batch")]
    with pytest.raises(ValueError, match=r"vllm_xargs\.lane = 'batch': must be one of online, offline"):
        llm.generate(["w1", "w2"], each, use_tqdm=False)
    with pytest.raises(ValueError, match=r"vllm_xargs\.client = 'a b'"):
        llm.generate("w1", params(client="a b"), use_tqdm=False)
    outputs = llm.generate("w3", params(client="alice"), use_tqdm=False)
    assert [output.prompt for output in outputs] == ["w3"]
    assert not llm.llm_engine.has_unfinished_requests()


def test_the_engine_hands_out_its_numbers(llm: Any) -> None:
    core = llm.llm_engine.engine_core
    core.call_utility("hybrid_drain")
    llm.generate("w7 w8 w9", params(5, lane="offline"), use_tqdm=False)
    drained = core.call_utility("hybrid_drain")
    assert drained["tokens"]["offline"]["output"] == 5
    assert drained["policy_errors"] == 0


def test_a_bad_setting_fails_where_the_engine_is_made(tiny_model: Path) -> None:
    from vllm import LLM

    with pytest.raises(ValueError, match=r"slo\.online\.ttft_s = -1: must be greater than 0"):
        engine_kwargs({"slo": {"online": {"ttft_s": -1}}})
    plain: Any = {"scheduler_cls": "vllm_hybrid.Scheduler", "additional_config": {"hybrid": {"stict": True}}}
    with pytest.raises(ValueError, match=r"unknown key 'stict': did you mean 'strict'\?"):
        LLM(str(tiny_model), **plain, **SMALL)


def test_tuning_never_changes_the_compile_cache_key(tiny_model: Path) -> None:
    plain = {"hybrid": {"slo": {"online": {"ttft_s": 3}}}}
    tuned = [
        engine_args(tiny_model, {}),
        engine_args(tiny_model, {"slo": {"online": {"ttft_s": 1}}, "clients": {"alice": {"weight": 2}}}),
        engine_args(tiny_model, {"fairness": {"output_weight": 4}}),
    ]
    tuned.append(engine_args(tiny_model, {}))
    tuned[-1].additional_config = plain
    keys = {args.create_engine_config().compute_hash() for args in tuned}
    assert len(keys) == 1
    other = engine_args(tiny_model, {})
    other.additional_config["caller"] = "own key"
    assert other.create_engine_config().compute_hash() not in keys


def test_async_engine_refuses_one_request_and_serves_its_neighbour(tiny_model: Path) -> None:
    asyncio.run(asyncio.wait_for(_async_engine(tiny_model), 300))


async def _async_engine(model: Path) -> None:
    from vllm import AsyncLLMEngine

    engine = AsyncLLMEngine.from_engine_args(engine_args(model, {"strict": True}))

    async def generate(request_id: str, sampling: Any) -> Any:
        return [output async for output in engine.generate("w1 w2", sampling, request_id)][-1]

    try:
        neighbour = asyncio.create_task(generate("good", params(200, client="neighbour")))
        for number, bad in enumerate([{"lane": "batch"}, {"client": ""}, {"client": 7}]):
            with pytest.raises(ValueError, match="vllm_xargs"):
                await generate(f"bad-{number}", params(**bad))
        output = await neighbour
        assert len(output.outputs[0].token_ids) == 200
    finally:
        engine.shutdown()


def test_a_client_beyond_its_limit_raises_and_others_are_served(llm: Any) -> None:
    with pytest.raises(ValueError, match=r"client 'greedy' has 2 requests waiting, as many as it may \(limits"):
        llm.generate(["w1", "w2", "w3"], params(client="greedy"), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert len(llm.generate(["w1", "w2"], params(client="greedy"), use_tqdm=False)) == 2
    llm.generate(["w1"], params(40, client="talker"), use_tqdm=False)
    with pytest.raises(ValueError, match=r"client 'talker' has used up its 20 tokens of the last minute"):
        llm.generate(["w1"], params(client="talker"), use_tqdm=False)
    assert len(llm.generate(["w1", "w2", "w3"], params(client="bob"), use_tqdm=False)) == 3
