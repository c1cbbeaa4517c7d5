"""What the fp8 half form costs in accuracy on a trained model, beside vLLM's own fp8 KV cache.

SmolLM2-135M-Instruct (RoPE, grouped heads), greedy, every request of the half form. Log probabilities of the same
tokens are compared with those of stock vLLM in float32: of every prompt token, and of every answer token up to the
first at which the answers part. And questions that stock answers right in bfloat16 must still be answered right.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.demo import model as demo_model
from benchmarks.demo.machine import describe
from benchmarks.papers.common import RESULTS, Check, Stopwatch, finish, table

# Question, and what a right answer contains.
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Spain?": "Madrid",
    "What is the capital of Germany?": "Berlin",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of China?": "Beijing",
    "What is the capital of Russia?": "Moscow",
    "What is the capital of Egypt?": "Cairo",
    "What is the capital of Greece?": "Athens",
    "What is the capital of Portugal?": "Lisbon",
    "What is the capital of the United Kingdom?": "London",
    "What is the capital of Austria?": "Vienna",
    "What is the capital of Poland?": "Warsaw",
    "What is the capital of Ireland?": "Dublin",
    "What is the capital of India?": "Delhi",
    "What is the largest planet of the solar system?": "Jupiter",
    "Which planet is closest to the Sun?": "Mercury",
    "Which planet is known as the Red Planet?": "Mars",
    "What is the largest ocean on Earth?": "Pacific",
    "What is the longest river in Africa?": "Nile",
    "What is the highest mountain on Earth?": "Everest",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "Who painted the Mona Lisa?": "Leonardo",
    "Who developed the theory of relativity?": "Einstein",
    "What is the chemical symbol of gold?": "Au",
    "What is the chemical formula of water?": "H2O",
    "Which gas do plants take in from the air?": "arbon dioxide",
    "How many days are in a week?": "seven|7",
    "How many months are in a year?": "twelve|12",
    "How many hours are in a day?": "24",
    "What is 2 + 2?": "4",
    "What is the opposite of hot?": "cold",
    "What is frozen water called?": "ice|Ice",
    "On which continent is Egypt?": "Africa",
    "On which continent is Brazil?": "South America",
    "Which language is spoken in Brazil?": "Portuguese",
    "What is the currency of Japan?": "yen|Yen",
    "What do bees make?": "honey|Honey",
    "Which organ pumps blood through the body?": "heart",
    "In which country is the Eiffel Tower?": "France",
}
WANTED_RIGHT = 20
ANSWER_TOKENS, QUICK_ANSWER_TOKENS = 32, 16
MEMORY = {"block_size": 32, "max_model_len": 512, "max_num_seqs": 48, "kv_cache_memory_bytes": 256 << 20}
CONTENDERS: dict[str, dict[str, Any]] = {
    "stock float32": {"dtype": "float32"},
    "stock bfloat16": {"dtype": "bfloat16"},
    "vLLM's fp8 KV cache": {"dtype": "bfloat16", "kv_cache_dtype": "fp8"},
    "half blocks, fp8": {"dtype": "bfloat16", "half": True},
}
REFERENCE, BF16, VLLMS, OURS = CONTENDERS


@dataclass
class Answers:
    """Of one contender, question by question: token ids, their log probabilities, those of the prompt, the text."""

    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    prompt_logprobs: list[list[float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def right(self) -> list[bool]:
        return [re.search(want, text) is not None for want, text in zip(QUESTIONS.values(), self.texts, strict=False)]


def asked(folder: str, questions: list[str], answer_tokens: int, half: bool = False, **engine: Any) -> Answers:
    """Let one engine answer the questions, all at once."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    if half:
        engine |= {"scheduler_cls": _always_half(), "additional_config": {"hybrid": {"cache": "fp8"}}}
    llm = LLM(folder, enforce_eager=True, **MEMORY, **engine)
    params = SamplingParams(temperature=0.0, max_tokens=answer_tokens, logprobs=0, prompt_logprobs=0)
    chats: Any = [[{"role": "user", "content": question}] for question in questions]
    answers = Answers()
    for output in llm.chat(chats, params, use_tqdm=False):
        sample = output.outputs[0]
        answers.tokens.append(list(sample.token_ids))
        answers.logprobs.append(_chosen(sample.token_ids, sample.logprobs))
        answers.prompt_logprobs.append(_chosen(output.prompt_token_ids[1:], output.prompt_logprobs[1:]))
        answers.texts.append(sample.text)
    if half:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        assert not scheduler.were_kv, "a request had KV"
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return answers


def _always_half() -> type:
    from vllm_hybrid.cache.scheduler import HalfBlockScheduler

    class AlwaysHalf(HalfBlockScheduler):
        were_kv = 0

        def takes_half(self, request: Any) -> bool:
            return True

        def moves_to_kv(self, request: Any) -> bool:
            return False

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            step = super().schedule(*args, **kwargs)
            self.were_kv += len(step.num_scheduled_tokens.keys() - self.blocks.half_requests)
            return step

    return AlwaysHalf


def _chosen(tokens: Any, logprobs: Any) -> list[float]:
    return [position[token].logprob for token, position in zip(tokens, logprobs, strict=True)]


def differences(ours: Answers, reference: Answers) -> dict[str, list[float]]:
    """|log probability - the reference's| of the same tokens after the same tokens."""
    pairs = zip(ours.prompt_logprobs, reference.prompt_logprobs, strict=True)
    prompt = [abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)]
    answer = []
    for row in range(len(reference.tokens)):
        mine, theirs = ours.tokens[row], reference.tokens[row]
        same = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
        answer += [abs(a - b) for a, b in zip(ours.logprobs[row][:same], reference.logprobs[row][:same])]
    return {"prompt": prompt, "answer": answer}


def measured(quick: bool) -> dict[str, dict[str, Any]]:
    """Every contender beside the reference."""
    folder = str(demo_model.prepare("smollm2"))
    questions = list(QUESTIONS)[: 4 if quick else None]
    tokens = QUICK_ANSWER_TOKENS if quick else ANSWER_TOKENS
    found = {name: asked(folder, questions, tokens, **engine) for name, engine in CONTENDERS.items()}
    plain = [row for row, right in enumerate(found[BF16].right()) if right][:WANTED_RIGHT]
    results = {}
    for name, answers in found.items():
        apart = differences(answers, found[REFERENCE])
        results[name] = {
            "median_prompt": statistics.median(apart["prompt"]),
            "median_answer": statistics.median(apart["answer"]),
            "prompt_tokens": len(apart["prompt"]),
            "answer_tokens": len(apart["answer"]),
            "plain_questions": len(plain),
            "answered_right": sum(answers.right()[row] for row in plain),
        }
    return results


def checks(results: Mapping[str, Mapping[str, Any]], quick: bool) -> list[Check]:
    ours, theirs = results[OURS], results[VLLMS]
    found = [
        Check(
            f"median |log probability - float32's|, {part} tokens: no worse than vLLM's fp8 KV cache",
            f"{ours[key]:.2e}",
            f"at most {theirs[key]:.2e}",
            ours[key] <= theirs[key],
        )
        for part, key in (("prompt", "median_prompt"), ("answer", "median_answer"))
    ]
    right, of = ours["answered_right"], ours["plain_questions"]
    wanted = of if quick else WANTED_RIGHT
    found.append(Check("questions that bfloat16 answers right", f"{right} of {of}", f"{wanted}", right >= wanted))
    return found


def main() -> int:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half_cache_accuracy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four questions, written nowhere")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a check fails")
    given = parser.parse_args()
    given.out = None if given.quick else RESULTS / "half_cache_accuracy.json"
    watch = Stopwatch()
    results = measured(given.quick)
    rows = [
        {
            "": name,
            "prompt tokens": f"{row['median_prompt']:.2e}",
            "answer tokens": f"{row['median_answer']:.2e}",
            "compared": f"{row['prompt_tokens']} + {row['answer_tokens']}",
            "plain questions right": f"{row['answered_right']} of {row['plain_questions']}",
        }
        for name, row in results.items()
    ]
    print(table(rows))
    print(f"SmolLM2-135M-Instruct; {describe()}; median |log probability - stock float32's|")
    return finish(given, results, {"machine": describe(), "wall_s": watch.seconds}, checks(results, given.quick))


if __name__ == "__main__":
    sys.exit(main())
