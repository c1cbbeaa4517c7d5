"""The scheduler in Python, without a server: one `LLM`, two tenants, two lanes.

    python examples/offline_batch.py MODEL

`engine_kwargs` gives the keyword arguments that select the scheduler; `LLM` and `AsyncEngineArgs` take them as they
are.  Client and lane of a request are two flat entries of `SamplingParams.extra_args`.  The order in which the
requests finish shows the policy: the online one first, then the two offline tenants in turn, although the first of
them asked for twice as much and asked earlier.
"""

from __future__ import annotations

import argparse

from vllm import LLM, SamplingParams

from vllm_hybrid import engine_kwargs


def params(client: str, lane: str) -> SamplingParams:
    extra_args = {"client": client, "lane": lane}
    return SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, extra_args=extra_args)


def main(model: str) -> None:
    # Two slots, so that requests queue and there is something to decide; on a CPU vLLM would else take most of
    # the memory for its cache.
    small = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 2, "kv_cache_memory_bytes": 1 << 28}
    llm = LLM(model, **engine_kwargs({"strict": True}, **small))
    requests = [("archive", "offline")] * 8 + [("reports", "offline")] * 4 + [("alice", "online")]
    for number, (client, lane) in enumerate(requests):
        prompt = f"Question {number}: why does bread rise?"
        llm.llm_engine.add_request(f"{client}-{number}", prompt, params(client, lane))
    finished = []
    while llm.llm_engine.has_unfinished_requests():
        finished += [output.request_id for output in llm.llm_engine.step() if output.finished]
    print("finished in this order:", *finished)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="two tenants and two lanes in one LLM")
    parser.add_argument("model", help="a model folder or name")
    main(parser.parse_args().model)
