"""One picture: each request's time to first token over the time it was sent, stock beside hybrid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed; has to be chosen before pyplot is imported

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from benchmarks.demo.load import BATCH, FLOOD, QUIET
from benchmarks.demo.run import Run

_STYLE = {
    BATCH: ("offline backlog", "#9a9a9a", "s", 16),
    FLOOD: ("flooding tenant", "#d98a2b", ".", 30),
    QUIET: ("quiet tenant", "#1f5fbf", "o", 34),
}


def draw(path: Path, runs: Sequence[Run], caption: str) -> None:
    figure, axes = plt.subplots(1, len(runs), figsize=(10, 4.4), sharex=True, sharey=True)
    for axis, run in zip(axes, runs, strict=True):
        for tenant, (label, colour, marker, size) in _STYLE.items():
            answered = [o for o in run.flood.outcomes if o.item.tenant == tenant and o.tokens]
            due_s, ttft_s = [o.item.due_s for o in answered], [o.ttft_s for o in answered]
            axis.scatter(due_s, ttft_s, s=size, c=colour, marker=marker, label=label, linewidths=0)
        p99_s = run.flood_figures(QUIET).ttft_p99_s
        axis.set_title(f"{run.scheduler}: quiet tenant's p99 TTFT {p99_s:.2g} s")
        axis.set_xlabel("seconds since the flood began")
        axis.grid(True, which="major", alpha=0.25)
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[0].set_ylabel("time to first token, s")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.text(0.5, 0.01, caption, ha="center", va="bottom", fontsize=8, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 0.93))
    figure.savefig(path, dpi=130)
    plt.close(figure)
