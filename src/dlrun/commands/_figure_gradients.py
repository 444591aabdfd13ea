"""Gradient health layer by layer, of a run's report/gradients.json."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.commands._drawing import BLUE, INK, ORANGE, RED, headline, new_figure, shortened, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gradients(run: runs.Run) -> Figure | None:
    """Layer by layer, the first on top: the median gradient norm, and the share of units that are never positive."""
    path = run.folder / "report" / "gradients.json"
    report = runs.read_json(path) if path.exists() else {}
    layers: dict[str, dict[str, float]] = report.get("layers") or {}
    if not layers:
        return None
    names = list(layers)
    figure = new_figure(8.4, min(14.0, max(3.2, 1.7 + 0.3 * len(names))))
    norms, dead = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    _norms(norms, [layers[name]["gradient_norm"] for name in names])
    _dead(dead, [layers[name]["dead_share"] for name in names])
    every = math.ceil(len(names) / 45)
    norms.set_yticks(range(0, len(names), every), [shortened(name, 28) for name in names[::every]], fontsize=9)
    norms.set_ylim(len(names) - 0.4, -0.6)
    healthy = report["verdict"] == "healthy"
    headline(norms, f"{title_of(run)}, {report['verdict']}", report["reason"], INK if healthy else RED)
    return figure


def _norms(axis: Axes, norms: list[float]) -> None:
    from matplotlib.ticker import NullFormatter

    known = [norm for norm in norms if math.isfinite(norm) and norm > 0]
    low, high = (min(known), max(known)) if known else (1e-3, 1.0)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    last = math.ceil(math.log10(high) + 0.1)
    axis.set_xlim(10.0 ** min(math.floor(math.log10(low) - 0.3), last - 2), 10.0**last)
    left, right = axis.get_xlim()
    for index, norm in enumerate(norms):
        usual = math.isfinite(norm) and norm > 0
        place = norm if usual else left if norm == 0 else right
        axis.plot([left, place], [index, index], color="#C9CDD2", linewidth=1.2, zorder=2)
        axis.plot(
            [place], [index], "o" if usual else "X", color=BLUE if usual else RED, markersize=7, zorder=3, clip_on=False
        )
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("gradient norm (median over the run)")


def _dead(axis: Axes, shares: list[float]) -> None:
    from matplotlib.ticker import PercentFormatter

    for index, share in enumerate(shares):
        if math.isfinite(share):
            axis.barh(index, share, height=0.55, color=RED if share > 0.5 else ORANGE)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xticks([0, 0.5, 1])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("dead units")
