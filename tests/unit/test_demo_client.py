"""The client notices when it was itself the one who did not run."""

import asyncio
import time

from benchmarks.demo.client import _LoopWatch


async def longest_stall_s(blocked_s):
    watch = _LoopWatch()
    watching = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    time.sleep(blocked_s)
    await asyncio.sleep(0.01)
    watching.cancel()
    return watch.longest_s


def test_a_blocked_loop_is_noticed():
    assert asyncio.run(longest_stall_s(0.4)) >= 0.3
