"""A tiny model made on the spot, and real servers of it on the CPU.

The model is random, so its text means nothing, but everything around it is real: tokenizer, chat template,
`vllm serve`, the engine.  One server costs about 2 GB and half a minute; tests share one per module.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

START_LIMIT_S = 500
STOP_LIMIT_S = 60
ENGINE_FLAGS = (
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "512"),
    *("--kv-cache-memory-bytes", "268435456", "--max-num-seqs", "16", "--shutdown-timeout", "2"),
)
_CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT with a tokenizer of a thousand words: w0, w1, w2 ...

    Small, but not too small: with steps of a millisecond vLLM's own output path falls behind on two cores,
    and a stream arrives in one piece at its end.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-opt")
    words = ["<pad>", "</s>", "<unk>", "system", "user", "assistant", ":", *(f"w{i}" for i in range(993))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="</s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(words),
        hidden_size=256,
        word_embed_proj_dim=256,
        ffn_dim=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    return folder


class Server:
    """A `vllm serve` process that is ready for requests."""

    def __init__(self, model: Path, flags: tuple[str, ...], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        vllm = Path(sys.executable).with_name("vllm")
        command = [str(vllm), "serve", str(model), "--served-model-name", "tiny", "--port", str(port)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", *ENGINE_FLAGS, *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO"},
                start_new_session=True,
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return response.read().decode()

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert self._process.poll() is None, f"the server ended:\n{self.log()[-4000:]}"
            assert time.monotonic() < deadline, f"the server did not start:\n{self.log()[-4000:]}"
            try:
                self.get("/health")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        self.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def settled(self, limit_s: float = 60.0) -> dict[tuple[str, ...], float]:
        """`samples` once they stand still: they are collected once a second, so wait until two rounds agree."""
        deadline = time.monotonic() + limit_s
        last = self.samples()
        while time.monotonic() < deadline:
            time.sleep(1.6)
            last, previous = self.samples(), last
            if last == previous:
                return last
        raise AssertionError("the metrics never stood still")

    def samples(self, prefix: str = "vllm_hybrid_") -> dict[tuple[str, ...], float]:
        """What /metrics says: (name, label values in the order of the label names) -> value, engines added up."""
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                if sample.name.startswith(prefix) and not sample.name.endswith("_created"):
                    labels = [value for name, value in sorted(sample.labels.items()) if name != "engine"]
                    key = (sample.name.removeprefix(prefix), *labels)
                    found[key] = found.get(key, 0.0) + sample.value
        return found


@pytest.fixture(scope="module")
def start_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server with the given flags and stops it after the module's last test."""
    started: list[Server] = []

    def start(*flags: str) -> Server:
        started.append(Server(tiny_model, flags, tmp_path_factory.mktemp("server") / "log"))
        started[-1].wait_until_healthy()
        return started[-1]

    yield start
    for server in started:
        server.stop()
