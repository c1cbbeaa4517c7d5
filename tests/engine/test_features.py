"""What a request may ask of vLLM works under hybrid as under stock: the same tokens, though memory is short."""

from dataclasses import replace

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.alone import serve_alone
from tests.engine.engines import HYBRID, STOCK, Call, check_clean, mixed_load, running_engine, scheduler_of, serve
from vllm_hybrid.engine.tally import StepMode

pytestmark = pytest.mark.e2e

LOAD = mixed_load(5, offline=6, online=5)
ROOM = {"num_gpu_blocks_override": 40, "max_num_seqs": 6}


def both(model: str, calls: list[Call], aborts: dict | None = None, **settings) -> list[dict]:
    """The answers of stock and of hybrid."""
    answers = []
    for scheduler in (STOCK, HYBRID):
        with running_engine(model, scheduler, **(ROOM | settings)) as engine:
            answers.append(serve(engine, calls, aborts or {}))
            check_clean(engine)
            if scheduler is HYBRID:
                assert scheduler_of(engine).tally.steps[StepMode.PLAN] > 10
    return answers


def test_aborts(tiny_opt):
    aborts = {6: ["off0"], 10: ["off3", "on0"], 14: ["on1"], 18: ["off5"]}  # running, waiting and just arrived
    stock, hybrid = both(tiny_opt, LOAD, aborts)
    for request_id in {request_id for ids in aborts.values() for request_id in ids}:
        for answers in (stock, hybrid):
            answers.pop(request_id, None)
    assert hybrid == stock
    assert len(stock) == len(LOAD) - 5


def test_several_samples_of_one_prompt(tiny_opt):
    # Sampling, but from one candidate: the samples are known.
    calls = [replace(call, sampling={"n": 1 + i % 3, "temperature": 1.0, "top_k": 1}) for i, call in enumerate(LOAD)]
    stock, hybrid = both(tiny_opt, calls)
    assert hybrid == stock
    assert {call.request_id: len(stock[call.request_id]) for call in calls} == {
        call.request_id: call.sampling["n"] for call in calls
    }


def test_structured_output(tiny_opt):
    def constrained(i: int, call: Call) -> Call:
        if i % 2:
            return call
        letters = StructuredOutputsParams(regex="[a-f]{30,60}")
        return replace(call, max_tokens=25, sampling={"structured_outputs": letters})

    calls = [constrained(i, call) for i, call in enumerate(LOAD)]
    stock, hybrid = both(tiny_opt, calls)
    assert hybrid == stock
    first_letter = 4 + ord("a") - 32  # the tokenizer's id of "a"
    for call in calls:
        if call.sampling:
            assert set(hybrid[call.request_id][0]) <= set(range(first_letter, first_letter + 6))


def test_lora(tiny_llama, three_loras):
    # Three adapters, two slots for them: a paused request's adapter must keep its place.
    calls = [replace(call, lora=three_loras[i % 3]) for i, call in enumerate(LOAD)]
    stock, hybrid = both(tiny_llama, calls, enable_lora=True, max_loras=2, max_lora_rank=8)
    assert hybrid == stock


def test_ngram_speculative_decoding(tiny_opt, tmp_path):
    # Prompts that repeat themselves, so that drafts are found.
    calls = [replace(call, prompt=(call.prompt[:12] * 40)[: len(call.prompt)]) for call in LOAD]
    drafting = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with running_engine(tiny_opt, STOCK, **ROOM) as engine:
        stock = serve(engine, calls)  # verified drafts change no greedy token, so stock need not draft
    hybrid = serve_alone(tmp_path, tiny_opt, HYBRID, calls, speculative_config=drafting, **ROOM)
    assert hybrid == stock


def test_resetting_the_prefix_cache_while_requests_run(tiny_opt):
    """As before a weight update: everybody loses its memory, parked requests too, and answers do not change."""
    with running_engine(tiny_opt, STOCK, **ROOM) as engine:
        stock = serve(engine, LOAD)
    with running_engine(tiny_opt, HYBRID, **(ROOM | {"max_num_seqs": 3})) as engine:
        step, resets = engine.step, []

        def step_and_reset():
            if scheduler_of(engine).parked and len(resets) < 3:
                resets.append(scheduler_of(engine).reset_prefix_cache(reset_running_requests=True))
            return step()

        engine.step = step_and_reset
        assert serve(engine, LOAD) == stock
        assert resets == [True, True, True]
        check_clean(engine)
