"""Three clients with a backlog, streaming through the `openai` client; prints what each of them got.

python examples/ray_serve/client.py [--base-url http://127.0.0.1:8000/v1] [--tokens 2000]

alice sends four times as many requests as bob and twice as many as carol, who has weight 2 (app.yaml).
"""

import argparse
import asyncio
import time
from collections import Counter

from openai import APIConnectionError, APIError, AsyncOpenAI

STREAMS = {"alice": 32, "bob": 8, "carol": 16}
START_LIMIT_S = 400


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


async def first_answer(api: AsyncOpenAI) -> str:
    """The model's name, when a replica has answered; Serve's door opens earlier."""
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            model = (await api.models.list()).data[0].id
            await api.completions.create(model=model, prompt="hello", max_tokens=1, timeout=START_LIMIT_S)
            return model
        except (APIConnectionError, APIError):
            if time.monotonic() > end_s:
                raise
            await asyncio.sleep(0.5)


async def received(tokens: Counter, count: int) -> Counter:
    """What everybody has got when all together have got so many tokens."""
    while tokens.total() < count:
        await asyncio.sleep(0.01)
    return Counter(tokens)


async def main(base_url: str, count: int) -> None:
    api = AsyncOpenAI(base_url=base_url, api_key="none")
    model = await first_answer(api)
    tokens: Counter = Counter()
    tasks = [
        asyncio.create_task(backlog(api, model, client, tokens)) for client, n in STREAMS.items() for _ in range(n)
    ]
    counting = asyncio.create_task(received(tokens, count))  # who came first is served first; then shares count
    done, _ = await asyncio.wait([counting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    before = next(iter(done)).result()  # a stream ends only by an error
    counting = asyncio.create_task(received(tokens, before.total() + count))
    done, _ = await asyncio.wait([counting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    after = next(iter(done)).result()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    got = {client: after[client] - before[client] for client in STREAMS}
    for client, part in got.items():
        print(f"{client:<6} {STREAMS[client]:3} streams  {part:6} tokens  {part / sum(got.values()):.2f} of all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--tokens", type=int, default=2000)
    given = parser.parse_args()
    asyncio.run(main(given.base_url, given.tokens))
