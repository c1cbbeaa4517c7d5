"""Two lanes through the ordinary `openai` client: offline work that steps aside for a question.

Start a server, then this program:

    vllm serve MODEL --scheduler hybrid --hybrid-config '{"slo": {"online": {"ttft_s": 1, "tbt_s": 0.2}}}'
    python examples/online_offline_http.py --base-url http://127.0.0.1:8000/v1

It fills the server with an offline tenant's work, asks one online question on top, and shows that the question
does not wait for the work, which is all finished nevertheless.  Client and lane of a request are two flat entries
of `vllm_xargs`; left out, they are "default" and "online".
"""

from __future__ import annotations

import argparse
import asyncio
import time

import openai

OFFLINE_REQUESTS = 24
OFFLINE_TOKENS = 48


async def answer(
    client: openai.AsyncOpenAI, model: str, question: str, max_tokens: int, tenant: str, lane: str
) -> tuple[float, float, str]:
    """(seconds to the first token, seconds to the last one, the text)."""
    sent = time.perf_counter()
    first_s, pieces = 0.0, []
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        extra_body={"vllm_xargs": {"client": tenant, "lane": lane}},
    )
    async for chunk in stream:
        first_s = first_s or time.perf_counter() - sent
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
    return first_s, time.perf_counter() - sent, "".join(pieces)


async def main(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:
        model = (await client.models.list()).data[0].id
        work = [
            asyncio.create_task(
                answer(client, model, f"Name {n} things found in a kitchen.", OFFLINE_TOKENS, "reports", "offline")
            )
            for n in range(3, 3 + OFFLINE_REQUESTS)
        ]
        await asyncio.sleep(1)  # the backlog is in the server now
        question = "What is the capital of France?"
        first_s, total_s, text = await answer(client, model, question, 16, "alice", "online")
        print(f"online   first token after {first_s:6.2f} s, done after {total_s:6.2f} s: {text.strip()[:60]!r}")
        done = await asyncio.gather(*work)
        first_s, total_s = max(first for first, _, _ in done), max(total for _, total, _ in done)
        print(f"offline  first token after {first_s:6.2f} s, done after {total_s:6.2f} s: the slowest of {len(done)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="offline work and an online question on one server")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    asyncio.run(main(parser.parse_args().base_url))
