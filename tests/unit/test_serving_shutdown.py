"""The end of a server: who is in gets its answer or one clear error, who comes is refused, nothing hangs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from vllm_hybrid.serving.door import Refusal, refuse
from vllm_hybrid.serving.shutdown import Drain


class EngineClient:
    def __init__(self) -> None:
        self.stopped_with: list[float | None] = []

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped_with.append(timeout)


class Call:
    """A request in flight: streams `chunks` with pauses between them, or answers once at the end."""

    def __init__(self, seconds: float, stream: bool) -> None:
        self.seconds, self.stream = seconds, stream
        self.sent: list[Any] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]}
        if self.stream:
            await send(start)
        await asyncio.sleep(self.seconds)
        if not self.stream:
            await send(start)
        await send({"type": "http.response.body", "body": b"done", "more_body": False})

    async def run(self, drain: Drain) -> None:
        async def send(message: Any) -> None:
            self.sent.append(message)

        scope = {"type": "http"}
        try:
            await drain.serve(self.app, scope, None, send)
        except Refusal as refusal:
            await refuse(scope, send, refusal)


def shut_down(timeout_s: float, *calls: Call) -> EngineClient:
    engine_client = EngineClient()

    async def main() -> None:
        drain, loop = Drain(), asyncio.get_running_loop()
        drain.hold_back(engine_client, loop)
        tasks = [asyncio.create_task(call.run(drain)) for call in calls]
        await asyncio.sleep(0.05)
        await loop.run_in_executor(None, lambda: engine_client.shutdown(timeout=timeout_s))
        assert drain.begun
        await asyncio.gather(*tasks)
        engine_client.shutdown(timeout=7)  # as vLLM does once more, in the server's own thread

    asyncio.run(main())
    return engine_client


def test_who_is_in_gets_its_answer() -> None:
    calls = [Call(0.3, stream=False), Call(0.3, stream=True)]
    engine_client = shut_down(20, *calls)
    assert all(call.sent[-1]["body"] == b"done" for call in calls)
    first, last = engine_client.stopped_with
    assert first is not None and 1 <= first < 20 and last == 7


def test_who_is_left_at_the_end_gets_one_clear_error() -> None:
    single, stream = Call(60, stream=False), Call(60, stream=True)
    shut_down(0.2, single, stream)
    start, body = single.sent
    assert start["status"] == 503 and (b"retry-after", b"5") in start["headers"]
    assert json.loads(body["body"])["error"]["code"] == 503
    start, end = stream.sent
    assert start["status"] == 200 and not end["more_body"]
    error, done = end["body"].decode().strip().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 503 and done == "data: [DONE]"


def test_without_a_timeout_nobody_is_waited_for() -> None:
    stream = Call(60, stream=True)
    shut_down(0, stream)
    assert not stream.sent[-1]["more_body"]


def test_a_caller_that_hangs_up_is_not_answered() -> None:
    async def main() -> list[Any]:
        call = Call(60, stream=True)
        task = asyncio.create_task(call.run(Drain()))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return call.sent

    assert len(asyncio.run(main())) == 1
