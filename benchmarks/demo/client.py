"""Replays a list of requests through the real `openai` client and notes when each token came.

Open loop: a request is sent when it is due, whatever became of those before it, and its time to first token
counts from when it was due.  One asyncio loop carries all streams; how late it sent and how much of a core it
used are reported, so that a slow client cannot pass for a slow server.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import openai
from tqdm import tqdm

from benchmarks.demo.load import Item
from benchmarks.demo.server import MODEL_NAME

_TIMEOUT_S = 1800
_WATCH_INTERVAL_S = 0.05
# In a log file each refresh of the bar is a line of its own.
_BAR_INTERVAL_S = 0.5 if sys.stderr.isatty() else 15


@dataclass(slots=True)
class Outcome:
    """What became of one request; times are seconds since the replay began."""

    item: Item
    sent_s: float = 0.0
    prompt_tokens: int = 0
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """(time, output tokens that came then), in order."""
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        return sum(n for _, n in self.tokens)

    @property
    def finished(self) -> bool:
        return self.error is None and self.output_tokens == self.item.output_tokens

    @property
    def first_token_s(self) -> float:
        return self.tokens[0][0]

    @property
    def last_token_s(self) -> float:
        return self.tokens[-1][0]

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.item.due_s

    @property
    def gaps_s(self) -> list[float]:
        times = [t for t, _ in self.tokens]
        return [later - earlier for earlier, later in pairwise(times)]


@dataclass(frozen=True, slots=True)
class Replay:
    """One pass over a request list."""

    outcomes: list[Outcome]
    client_cpu_share: float
    """CPU seconds the client used per second of the replay: near 1 it would be the bottleneck."""
    client_stall_s: float = 0.0
    """The longest time the client's loop could not run: a gap of that length may be the client's own."""

    @property
    def makespan_s(self) -> float:
        return max((o.last_token_s for o in self.outcomes if o.tokens), default=0.0)

    @property
    def latest_send_s(self) -> float:
        return max((o.sent_s - o.item.due_s for o in self.outcomes), default=0.0)


def replay(base_url: str, items: Sequence[Item], title: str, limit_s: float | None = None) -> Replay:
    """Send every item when it is due; returns when all are answered, or given up after `limit_s`."""
    return asyncio.run(_replay(base_url, items, title, limit_s))


def ask(base_url: str, questions: Sequence[str], max_tokens: int) -> list[str]:
    """The model's own greedy answers to plain questions."""
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        answers = [
            client.chat.completions.create(
                model=MODEL_NAME,
                messages=[{"role": "user", "content": question}],
                max_tokens=max_tokens,
                temperature=0,
            )
            for question in questions
        ]
    return [(answer.choices[0].message.content or "").strip() for answer in answers]


async def _replay(base_url: str, items: Sequence[Item], title: str, limit_s: float | None) -> Replay:
    outcomes = [Outcome(item) for item in items]
    # A retry would hide an error and send a request twice: every error counts.
    async with openai.AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=_TIMEOUT_S
    ) as client:
        with tqdm(total=len(items), desc=title, unit="req", mininterval=_BAR_INTERVAL_S) as bar:
            start, cpu = time.perf_counter(), time.process_time()
            watch = _LoopWatch()
            watching = asyncio.create_task(watch.run())
            streams = [asyncio.create_task(_one(client, outcome, start, bar)) for outcome in outcomes]
            _, unfinished = await asyncio.wait(streams, timeout=limit_s)
            for stream in unfinished:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=limit_s is not None)
            watching.cancel()
            wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    return Replay(outcomes, cpu_s / wall_s, watch.longest_s)


class _LoopWatch:
    """Wakes often and notes how late: what is late for it is late for every stream of the loop."""

    longest_s = 0.0

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_WATCH_INTERVAL_S)
            self.longest_s = max(self.longest_s, time.perf_counter() - before - _WATCH_INTERVAL_S)


async def _one(client: openai.AsyncOpenAI, outcome: Outcome, start: float, bar: tqdm) -> None:
    item = outcome.item
    await asyncio.sleep(item.due_s - (time.perf_counter() - start))
    outcome.sent_s = time.perf_counter() - start
    try:
        stream = await client.chat.completions.create(
            model=MODEL_NAME,
            messages=[{"role": "user", "content": item.prompt}],
            max_tokens=item.output_tokens,
            temperature=0,
            stream=True,
            extra_body={
                "ignore_eos": True,
                "vllm_xargs": {"client": item.tenant, "lane": item.lane},
                # Usage in every chunk: one that carries two tokens must count as two.
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
        )
        seen = 0
        async for chunk in stream:
            if chunk.usage is not None and chunk.usage.completion_tokens > seen:
                outcome.tokens.append((time.perf_counter() - start, chunk.usage.completion_tokens - seen))
                seen = chunk.usage.completion_tokens
                outcome.prompt_tokens = chunk.usage.prompt_tokens
    except openai.OpenAIError as error:
        outcome.error = f"{type(error).__name__}: {error}"
    bar.update()
