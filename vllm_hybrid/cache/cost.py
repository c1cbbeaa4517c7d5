"""What each form costs per token of context and layer: bytes kept, bytes and FLOP of a decode step. Arithmetic, no
clock.

    python -m vllm_hybrid.cache.cost

prints the table of `docs/design/hybrid_cache.md`. Symbols as in `kernels/`: H, nh, nkv, hd; two bytes per element.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTES = 2
FLOPS_PER_BYTE = 180.0
"""Of an H200: matrix FLOP in the time in which its memory moves a byte."""


@dataclass(frozen=True, slots=True)
class FormCost:
    """Of one layer."""

    kept_bytes: int
    """Memory per token of context."""

    read_bytes: int
    """Moved per token of context in a decode step."""

    flops: int
    """Per token of context in a decode step."""

    step_bytes: int = 0
    """Moved once per step in which any row has this form."""

    row_flops: int = 0
    """Per row of this form in a decode step."""

    def step_seconds(self, rows: int, context_tokens: int, bytes_per_s: float, flops_per_s: float) -> float:
        """The least time of one layer's attention over `context_tokens` in all, on a device with these ceilings."""
        attention_s = context_tokens * max(self.read_bytes / bytes_per_s, self.flops / flops_per_s)
        return attention_s + max(self.step_bytes / bytes_per_s, rows * self.row_flops / flops_per_s)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    hidden: int
    heads: int
    kv_heads: int
    head_size: int

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    def kv(self) -> FormCost:
        size = 2 * self.kv_width * BYTES
        return FormCost(size, size, 4 * self.heads * self.head_size)

    def fp8(self) -> FormCost:
        size = 2 * self.kv_width
        return FormCost(size, size, 4 * self.heads * self.head_size)

    def absorbed(self) -> FormCost:
        """Hidden states by the kernels here: x is read twice, and the weights p are written and read."""
        size = self.hidden * BYTES
        weights = 2 * self.hidden * self.kv_width
        return FormCost(
            size, 2 * size + 2 * self.heads * BYTES, 4 * self.heads * self.hidden, weights * BYTES, 2 * weights
        )

    def projected(self) -> FormCost:
        """Hidden states as Apt-Serve has them: K and V of the whole context are made anew in every step."""
        size = self.hidden * BYTES
        made = 2 * self.kv_width * BYTES
        flops = 4 * self.hidden * self.kv_width + 4 * self.heads * self.head_size
        return FormCost(size, 3 * size + 2 * made, flops, made * self.hidden)

    def break_even_query_tokens(self) -> int:
        """Query tokens of a prompt chunk from which projecting the context costs fewer FLOP than absorbed attention."""
        saved = 4 * self.heads * (self.hidden - self.head_size)
        return -(-4 * self.hidden * self.kv_width // saved)

    def absorbed_query_tokens(self, flops_per_byte: float = FLOPS_PER_BYTE) -> int:
        """Query tokens of a prompt chunk up to which reading x absorbed, once per token, takes less time than
        projecting the context once; at least 1."""
        absorbed, projected = (
            max(cost.read_bytes, cost.flops / flops_per_byte) for cost in (self.absorbed(), self.projected())
        )
        return max(1, int(projected / absorbed))

    def fp8_query_tokens(self) -> int:
        """The same for fp8: reading it out reads a byte, writes two and reads two, where in place reads one per query
        token."""
        return (self.fp8().read_bytes + 2 * self.kv().read_bytes) // self.fp8().read_bytes


SHAPES = {
    "OPT-6.7B, Llama-2-7B": AttentionShape(4096, 32, 32, 128),
    "OPT-13B, Llama-2-13B": AttentionShape(5120, 40, 40, 128),
    "OPT-30B": AttentionShape(7168, 56, 56, 128),
    "Llama-3-8B": AttentionShape(4096, 32, 8, 128),
}


def cost_table() -> str:
    """Every form of every shape, in Markdown."""
    lines = ["| shape | form | kept B | read B | kFLOP | FLOP / B | once per step |", "|---|---|---|---|---|---|---|"]
    for name, shape in SHAPES.items():
        forms = {"KV": shape.kv(), "fp8": shape.fp8()}
        if shape.hidden <= shape.kv_width:
            forms |= {"hidden, absorbed": shape.absorbed(), "hidden, projected": shape.projected()}
        for form, cost in forms.items():
            once = f"{cost.step_bytes / 1e6:.0f} MB" if cost.step_bytes else "-"
            lines.append(
                f"| {name} | {form} | {cost.kept_bytes:,} | {cost.read_bytes:,} | {cost.flops / 1e3:,.1f} |"
                f" {cost.flops / cost.read_bytes:,.0f} | {once} |"
            )
            name = ""
    return "\n".join(lines)


if __name__ == "__main__":
    print(cost_table())
