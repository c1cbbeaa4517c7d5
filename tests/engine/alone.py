"""One load on one engine in a process of its own: for what may not share a process with another engine.

vLLM looks through all loaded modules when a CPU engine starts, and stumbles over llvmlite, which its n-gram proposer
loads (through numba). So after such an engine no other can start in the same process.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def serve_alone(folder: Path, model: str, scheduler: dict[str, Any], calls: list[Any], **settings: Any) -> dict:
    """The answers of one engine; `folder` takes the two files that pass to and fro."""
    task, answer = folder / "task.pickle", folder / "answer.pickle"
    task.write_bytes(pickle.dumps((model, scheduler, calls, settings)))
    command = [sys.executable, "-m", "tests.engine.alone", str(task), str(answer)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads(answer.read_bytes())


def main(task: str, answer: str) -> None:
    from tests.engine.engines import check_clean, running_engine, serve

    model, scheduler, calls, settings = pickle.loads(Path(task).read_bytes())
    with running_engine(model, scheduler, **settings) as engine:
        answers = serve(engine, calls)
        check_clean(engine)
    Path(answer).write_bytes(pickle.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
