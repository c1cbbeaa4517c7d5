"""On the real engine, in float32: requests of the hidden form get exactly the tokens that stock vLLM gives them.

Prefix caching, shared prefixes, chunked prefill and mixed batches are part of the load.
"""

from __future__ import annotations

import pytest
from vllm import SamplingParams

from tests.engine.conftest import save_tokenizer
from tests.engine.engines import mixed_load, running_engine, scheduler_of, serve
from vllm_hybrid.cache.kernels import reference
from vllm_hybrid.cache.scheduler import HalfBlockScheduler

pytestmark = pytest.mark.e2e

LOAD = mixed_load(1)


def half_cache(scheduler_cls: type, form: str = "hidden") -> dict:
    """Engine arguments of vLLM's own scheduler with half blocks."""
    return {"scheduler_cls": scheduler_cls, "additional_config": {"hybrid": {"cache": form}}}


TINY_POOL = {"num_gpu_blocks_override": 22, "max_model_len": 640, "max_num_seqs": 8}


class Watched(HalfBlockScheduler):
    """Counts what the tests hold the form against."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.were_half: set[str] = set()
        self.preempted_half = 0
        self.batches: list[int] = []
        self.mixed_steps = 0
        self.most_tokens = 0
        self.found_tokens = 0

    def schedule(self, *args, **kwargs):
        step = super().schedule(*args, **kwargs)
        half = self.blocks.half_requests & step.num_scheduled_tokens.keys()
        self.were_half |= half
        self.mixed_steps += 0 < len(half) < len(step.num_scheduled_tokens)
        self.batches.append(len(step.num_scheduled_tokens))
        self.most_tokens = max(self.most_tokens, sum(request.num_computed_tokens for request in self.running))
        came = [new for new in step.scheduled_new_reqs if new.req_id in half]
        self.found_tokens += sum(new.num_computed_tokens for new in came)
        self.blocks.integrity()
        return step

    def _preempt_request(self, request, *args, **kwargs):
        self.preempted_half += request.request_id in self.blocks.half_requests
        return super()._preempt_request(request, *args, **kwargs)


class EveryOther(Watched):
    """Every other pair by the order in which they are looked at first: requests with a shared prefix are of both."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.turns: dict[str, bool] = {}

    def takes_half(self, request) -> bool:
        return self.turns.setdefault(request.request_id, len(self.turns) // 2 % 2 == 0)


class All(Watched):
    def takes_half(self, request) -> bool:
        return True


class Nobody(Watched):
    def takes_half(self, request) -> bool:
        return False


@pytest.fixture(scope="module")
def stock(tiny_opt) -> dict:
    with running_engine(tiny_opt) as engine:
        return serve(engine, LOAD)


def check_books(engine) -> None:
    """Nothing is left of the load."""
    scheduler = scheduler_of(engine)
    scheduler.blocks.integrity()
    assert scheduler.blocks.half_blocks.ids.split_blocks == 0 and not scheduler.blocks.half_requests
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == scheduler.kv_cache_config.num_blocks - 1
    assert scheduler.blocks.demand_blocks == 0 and not scheduler.blocks._awaited


@pytest.mark.parametrize(
    ("scheduler", "pool"),
    [(Nobody, {}), (EveryOther, {}), (All, {}), (EveryOther, TINY_POOL), (All, TINY_POOL)],
    ids=["nobody", "every-other", "all", "every-other-tiny-pool", "all-tiny-pool"],
)
def test_tokens_are_stocks_whoever_is_hidden(tiny_opt, stock, scheduler, pool) -> None:
    with running_engine(tiny_opt, half_cache(scheduler), **pool) as engine:
        assert serve(engine, LOAD) == stock
        check_books(engine)
        watched = scheduler_of(engine)
        assert bool(watched.were_half) == (scheduler is not Nobody)
        assert (watched.mixed_steps > 20) == (scheduler is EveryOther)
        assert (watched.preempted_half > 0) == (bool(pool) and scheduler is not Nobody)
        assert (watched.found_tokens > 0) == (scheduler is not Nobody)


def test_without_the_hidden_states_exactly_the_hidden_requests_go_wrong(tiny_opt, stock, monkeypatch) -> None:
    """The tests above would notice a cache that holds nothing."""
    monkeypatch.setattr(reference, "hidden_write", lambda x, view, slots: None)
    with running_engine(tiny_opt, half_cache(EveryOther)) as engine:
        outputs = serve(engine, LOAD)
        were_half = {request_id.rpartition("-")[0] for request_id in scheduler_of(engine).were_half}
    assert {request_id for request_id in stock if outputs[request_id] != stock[request_id]} == were_half


def logprobs_of(engine, calls: int = 6) -> list[list[float]]:
    """The chosen token's log probability at every position, with the tokens themselves in front."""
    found: dict[str, list[float]] = {}
    for i in range(calls):
        prompt = [(7 * i + 13 * j) % 900 + 50 for j in range(20 + 45 * i)]
        params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)
        engine.add_request(f"p{i}", {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            sample = output.outputs[0]
            chosen = [
                positions[token].logprob for token, positions in zip(sample.token_ids, sample.logprobs, strict=True)
            ]
            found[output.request_id] = [*map(float, sample.token_ids), *chosen]
    return [found[f"p{i}"] for i in range(calls)]


def make_gpt2(folder) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 1024, "vocab_size": 1000}
    GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, activation_function="relu")).float().save_pretrained(
        folder
    )


def make_bloom(folder) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    sizes = {"hidden_size": 64, "n_layer": 2, "n_head": 2, "vocab_size": 1000}
    BloomForCausalLM(BloomConfig(**sizes, initializer_range=0.3)).float().save_pretrained(folder)


@pytest.mark.parametrize("make", [make_gpt2, make_bloom])
def test_log_probabilities_are_stocks(tmp_path, make) -> None:
    """GPT-2, and Bloom with its ALiBi."""
    import torch

    torch.manual_seed(3)
    make(tmp_path)
    save_tokenizer(tmp_path)
    with running_engine(str(tmp_path)) as engine:
        want = logprobs_of(engine)
    with running_engine(str(tmp_path), half_cache(EveryOther)) as engine:
        got = logprobs_of(engine)
        assert scheduler_of(engine).mixed_steps > 10
    worst = max(abs(a - b) for ours, stocks in zip(got, want, strict=True) for a, b in zip(ours, stocks, strict=True))
    print(f"{make.__name__}: log probabilities differ by {worst:.1e} at most")
    assert worst <= 2e-5


def test_the_same_memory_holds_twice_the_requests(tiny_opt) -> None:
    """A burst that fits the memory neither way: hidden against KV only."""
    pool = {"num_gpu_blocks_override": 34, "max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 512}
    seen = {}
    for scheduler in (Nobody, All):
        with running_engine(tiny_opt, half_cache(scheduler), **pool) as engine:
            for i in range(64):
                params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
                engine.add_request(f"b{i}", {"prompt_token_ids": [10 + i] * (60 + i)}, params)
            while engine.has_unfinished_requests():
                engine.step()
            watched = scheduler_of(engine)
            seen[scheduler] = watched.most_tokens, sum(watched.batches) / len(watched.batches), len(watched.batches)
            check_books(engine)
    (kv_tokens, kv_batch, kv_steps), (tokens, batch, steps) = seen[Nobody], seen[All]
    print(f"tokens held {kv_tokens} -> {tokens}, mean batch {kv_batch:.2f} -> {batch:.2f}, steps {kv_steps} -> {steps}")
    assert tokens >= 1.9 * kv_tokens and batch >= 1.8 * kv_batch and steps <= 0.6 * kv_steps


def test_under_pressure_requests_take_the_hidden_form_by_themselves(tiny_opt, stock) -> None:
    with running_engine(tiny_opt, half_cache(Watched), num_gpu_blocks_override=40) as engine:
        assert serve(engine, LOAD) == stock
        assert 0 < len(scheduler_of(engine).were_half) < len(LOAD)
        check_books(engine)
