"""The confusion matrix of a run's held-out rows, of its confusion.json."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands._drawing import INK, headline, new_figure, shortened, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_TEXT_CLASSES = 20  # above it, counts would be too small to read
_NAMED_CLASSES = 60  # above it, not every class has room for its name


def confusion_matrix(run: runs.Run) -> Figure | None:
    """Rows are true classes, columns predictions; colour is the share of the row, so rare classes are seen too."""
    if not (run.folder / "confusion.json").exists():
        return None
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    stored = runs.read_json(run.folder / "confusion.json")
    labels, counts = [str(label) for label in stored["labels"]], np.asarray(stored["counts"], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(11.0, max(4.6, 2.4 + 0.42 * len(labels)))
    figure = new_figure(size + 1.0, size)
    axis = figure.subplots()
    # The root of the share, as errors of a few per cent are what one looks for.
    image = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    _name_classes(axis, labels)
    if len(labels) <= _CELL_TEXT_CLASSES:
        _write_counts(axis, counts, shares)
        _separate(axis, len(labels))
    bar = figure.colorbar(
        image, ax=axis, shrink=0.8, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=PercentFormatter(1, decimals=0)
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("share of the true class", color=INK)
    right, total = int(np.trace(counts)), int(counts.sum())
    headline(axis, title_of(run), f"{right:,} of {total:,} right ({right / max(total, 1):.1%})")
    return figure


def _name_classes(axis: Axes, labels: list[str]) -> None:
    every = 1 if len(labels) <= _NAMED_CLASSES else math.ceil(len(labels) / 30)
    places = list(range(0, len(labels), every))
    names = [shortened(labels[place]) for place in places]
    size = 10 if len(labels) <= 20 else 7.5
    upright = max(map(len, names)) <= 3
    axis.set_xticks(
        places,
        names,
        rotation=0 if upright else 45,
        ha="center" if upright else "right",
        rotation_mode="anchor" if not upright else "default",
        fontsize=size,
    )
    axis.set_yticks(places, names, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")


def _write_counts(axis: Axes, counts: Any, shares: Any) -> None:
    longest = max(len(f"{count:,.0f}") for count in counts.flat)
    size = min(10.0, 30 / max(longest, 3))
    for row in range(len(counts)):
        for column in range(len(counts)):
            if counts[row, column]:
                axis.text(
                    column,
                    row,
                    f"{counts[row, column]:,.0f}",
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if shares[row, column] > 0.3 else INK,
                )


def _separate(axis: Axes, size: int) -> None:
    """White lines between cells."""
    places = [index - 0.5 for index in range(1, size)]
    axis.hlines(places, -0.5, size - 0.5, color="white", linewidth=1.5)
    axis.vlines(places, -0.5, size - 0.5, color="white", linewidth=1.5)
