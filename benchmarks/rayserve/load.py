"""Clients that keep a server backlogged through the `openai` client, streaming, and count what they get."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PROMPT = list(range(10, 42))
OUTPUT_TOKENS = 32


@dataclass
class Backlog:
    """`width` requests of each client at a time, until `stop`. Nothing is retried by the client library."""

    url: str
    model: str
    width: dict[str, int]
    prompts: Counter[str] = field(default_factory=Counter)  # requests whose first token came
    tokens: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    when: list[tuple[float, str]] = field(default_factory=list)  # (second, client) of every token
    failed: list[tuple[float, str]] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        from openai import AsyncOpenAI

        self._api = AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60, max_retries=0)
        self._tasks = [
            asyncio.create_task(self._forever(client, [10 + stream, *PROMPT[1:]]))
            for client, width in self.width.items()
            for stream in range(width)
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()

    async def _forever(self, client: str, prompt: list[int]) -> None:
        while True:
            try:
                await self._one(client, prompt)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.errors[client] += 1
                self.failed.append((time.monotonic(), f"{client}: {type(error).__name__}"))
                await asyncio.sleep(0.2)

    async def _one(self, client: str, prompt: list[int]) -> None:
        extra: dict[str, Any] = {"ignore_eos": True, "vllm_xargs": {"client": client, "lane": "online"}}
        extra["return_token_ids"] = True
        stream = await self._api.completions.create(
            model=self.model, prompt=prompt, max_tokens=OUTPUT_TOKENS, temperature=0, stream=True, extra_body=extra
        )
        first = True
        async for chunk in stream:
            count = sum(len(getattr(choice, "token_ids", None) or ()) for choice in chunk.choices)
            if not count:
                continue
            if first:
                self.prompts[client] += 1
                first = False
            self.tokens[client] += count
            self.when += [(time.monotonic(), client)] * count

    def shares(self, from_s: float, to_s: float) -> dict[str, float]:
        """Each client's part of the tokens that came in [from_s, to_s)."""
        got = Counter(client for at_s, client in self.when if from_s <= at_s < to_s)
        total = sum(got.values()) or 1
        return {client: got[client] / total for client in self.width}

    def service(self) -> dict[str, float]:
        """What each client got, as it is charged: 1 per prompt token, 2 per output token."""
        return {c: float(len(PROMPT) * self.prompts[c] + 2 * self.tokens[c]) for c in self.width}
