"""Three clients with a backlog, streaming through the `openai` client; prints what each of them got.

python examples/ray_serve/client.py [--base-url http://127.0.0.1:8000/v1] [--seconds 10]

alice sends four times as many requests as bob and carol; carol has weight 2 (app.yaml). In the end alice and bob have
the same number of tokens, carol twice as many, whichever replica their requests went to.
"""

import argparse
import asyncio
from collections import Counter

from openai import AsyncOpenAI

STREAMS = {"alice": 32, "bob": 8, "carol": 16}


async def backlog(api: AsyncOpenAI, model: str, client: str, tokens: Counter) -> None:
    while True:
        stream = await api.completions.create(
            model=model,
            prompt=list(range(10, 30)),
            max_tokens=32,
            stream=True,
            extra_body={"ignore_eos": True, "vllm_xargs": {"client": client}, "return_token_ids": True},
        )
        async for chunk in stream:
            tokens[client] += sum(len(getattr(choice, "token_ids", None) or ()) for choice in chunk.choices)


async def main(base_url: str, seconds: float) -> None:
    api = AsyncOpenAI(base_url=base_url, api_key="none")
    model = (await api.models.list()).data[0].id
    tokens: Counter = Counter()
    tasks = [
        asyncio.create_task(backlog(api, model, client, tokens)) for client, n in STREAMS.items() for _ in range(n)
    ]
    await asyncio.sleep(seconds / 2)
    before = Counter(tokens)
    await asyncio.sleep(seconds / 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    got = {client: tokens[client] - before[client] for client in STREAMS}
    for client, count in got.items():
        print(f"{client:<6} {STREAMS[client]:3} streams  {count:6} tokens  {count / sum(got.values()):.2f} of all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    asyncio.run(main(given.base_url, given.seconds))
