"""The plots of a report, each a piece of SVG: how long clients waited, how long they stood still, what they got."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Record = Mapping[str, Any]

_MOST_PANELS = 8
_PANELS_A_ROW = 4
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vllm-hybrid",  # the same ids every time
}


def distributions(records: Sequence[Record]) -> str:
    """A curve per policy: wait for the first token, worst gap, and the age of offline work where there is any."""
    panels = [
        ("online", "wait_s", "wait for the first token, s"),
        ("online", "worst_gap_s", "worst gap of a request, s"),
    ]
    if any("offline" in record["distributions"] for record in records):
        panels.append(("offline", "age_s", "age of an offline request, s"))
    with _figure(1, len(panels), figsize=(5.0 * len(panels), 3.4)) as (figure, axes):
        for axis, (lane, series, label) in zip(axes, panels):
            for record in records:
                values = record["distributions"].get(lane, {}).get(series)
                if values:
                    percent = [100 * i / (len(values) - 1) for i in range(len(values))]
                    axis.plot(values, percent, label=record["contender"]["name"], linewidth=1.6)
            axis.set(xlabel=label, ylabel="% of requests at most", ylim=(0, 101))
            axis.set_xscale("symlog", linthresh=0.1)
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes[0].legend(frameon=False)
        return _svg(figure)


def service(records: Sequence[Record]) -> str:
    """A panel per policy: what each client has got so far."""
    shown = records[:_MOST_PANELS]
    columns = min(len(shown), _PANELS_A_ROW)
    rows = -(-len(shown) // columns)
    with _figure(rows, columns, figsize=(3.8 * columns, 3.0 * rows), sharey=True) as (figure, axes):
        for axis, record in zip(axes, shown):
            for client, got in sorted(record["service"]["service"].items()):  # a client has one colour everywhere
                axis.plot(record["service"]["at_s"], got, label=client, linewidth=1.4)
            axis.set(title=record["contender"]["name"], xlabel="s", ylim=(0, None))
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        axes[0].set_ylabel("accumulated service")
        axes[0].legend(frameon=False, fontsize=7)
        return _svg(figure)


@contextmanager
def _figure(rows: int, columns: int, **options: Any) -> Iterator[tuple[Any, Sequence[Any]]]:
    """A figure and its panels in one list, in the report's style, closed after use."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed; has to be chosen before pyplot is imported
    import matplotlib.pyplot as plt

    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, squeeze=False, **options)
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def _svg(figure: Any) -> str:
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]  # an XML header has no place inside a page
