"""How every figure of a run looks: colours, type, headings.

The colours are those of Okabe and Ito 2008, "Color Universal Design": told apart by every kind of colour vision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.config import check
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8F98", "#22262B"
QUIET = "#5A6068"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#B8BDC4", "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12, "axes.titlelocation": "left",
    "grid.color": "#E6E8EB", "grid.linewidth": 0.8, "xtick.color": QUIET, "ytick.color": QUIET,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.solid_capstyle": "round", "savefig.dpi": 150,
}  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure  # not pyplot: its import costs as much again

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr]
    return figure


def headline(axis: Axes, title: str, below: str = "", color: str = INK) -> None:
    """A bold line above the axes, and a quiet one under it."""
    axis.set_title(literal(title), pad=28 if below else 14, fontweight="bold", color=color)
    if below:
        place = {"xytext": (0, 10), "xycoords": "axes fraction", "textcoords": "offset points"}
        axis.annotate(literal(below), (0, 1), color=QUIET, **place)


def title_of(run: runs.Run) -> str:
    """What the run is called: its name or id, and what was trained on what."""
    name = run.record.name or f"run {run.short_id}"
    try:
        config = check.read_plain(run.folder)
        return f"{name}: {config['model']['name']} on {config['data']['name']}"
    except (DlrunError, KeyError, TypeError):
        return name


def shortened(name: str, most: int = 16) -> str:
    """A name that fits beside an axis."""
    return literal(name if len(name) <= most else f"{name[: most - 1]}…")


def literal(text: str) -> str:
    """The text as it is: dollars are no formula, and a line is a line."""
    return " ".join(text.split()).replace("$", r"\$")
