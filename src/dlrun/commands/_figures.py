"""The pictures in a run's folder: learning curve, confusion matrix, gradients. Drawn from its files alone."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.commands._drawing import BLUE, GREEN, GREY, ORANGE, RED, STYLE, headline, literal, new_figure, title_of
from dlrun.commands._figure_confusion import confusion_matrix
from dlrun.commands._figure_gradients import gradients

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVE_POINTS = 80  # above it, a curve is drawn as its running mean, the curve itself faintly behind

Curve = Sequence[tuple[int, float]]


def draw(run: runs.Run) -> list[Path]:
    """Draw what the run's files allow into figures/; returns the PNGs.

    Raises: DlrunError if a file is damaged (code DATA) or the folder cannot be written (DISK).
    """
    from matplotlib import rc_context

    made = []
    with rc_context(STYLE):  # type: ignore[arg-type]
        for make in (learning_curve, confusion_matrix, gradients):
            figure = make(run)
            if figure is not None:
                made.append(_save(figure, run.folder / "figures" / f"{make.__name__}.png"))
    return made


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class in a script the font lacks: a box, and no more
        figure.savefig(buffer, format="png", facecolor="white")
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise runs.disk_error(path.parent, error) from error
    runs.write_atomically(path, buffer.getvalue())
    return path


def learning_curve(run: runs.Run) -> Figure | None:
    """Losses above, the goal below, over steps; the best step is marked."""
    from dlrun.training.metrics_log import histories, read_rows

    found = {name: _finite(curve) for name, curve in histories(read_rows(run.metrics_file)).items()}
    losses = [(name, found[name]) for name in ("train/loss", "valid/loss") if found.get(name)]
    goal = _goal_name(run, found)
    shown = [(goal, found[goal])] if goal and goal != "valid/loss" and found.get(goal) else []
    panels = [panel for panel in (losses, shown) if panel]
    if not panels or ("train/loss" not in found and all(len(curve) < 2 for panel in panels for _, curve in panel)):
        return None  # an evaluation has numbers, but no curve
    figure = new_figure(7.6, 3.4 + 2.2 * (len(panels) - 1))
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        for name, curve in panel:
            _plot(axis, curve, name)
        axis.set_ylabel("loss" if panel is losses else literal(goal.removeprefix("valid/")))
    if losses:
        _log_if_wide(axes[0], [value for _, curve in losses for _, value in curve])
        axes[0].legend(loc="lower right", bbox_to_anchor=(1.01, 1), ncols=2, handlelength=1.4, borderaxespad=0.2)
    _steps(axes[-1], panels)
    _mark_best(run, list(axes), dict(panels[-1]).get(goal, []))
    headline(axes[0], title_of(run))
    figure.align_ylabels(list(axes))
    return figure


def _steps(axis: Axes, panels: list[list[tuple[str, Curve]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(curve[-1][0] for panel in panels for _, curve in panel)
    axis.set_xlim(0, max(1, last) * 1.03)
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _goal_name(run: runs.Run, found: dict[str, Curve]) -> str:
    result = run.result
    if result:
        return f"valid/{result['goal']['name']}"
    others = [name for name in found if name.startswith("valid/") and name != "valid/loss"]
    return others[0] if others else "valid/loss"


def _plot(axis: Axes, curve: Curve, name: str) -> None:
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    color = BLUE if name == "train/loss" else ORANGE if name == "valid/loss" else GREEN
    if len(values) > _CURVE_POINTS:
        axis.plot(steps, values, color=color, alpha=0.22, linewidth=1)
        values = running_mean(values, len(values) // 40)
    marker = "o" if len(values) == 1 or (len(values) <= 40 and name != "train/loss") else None
    axis.plot(
        steps,
        values,
        color=color,
        marker=marker,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label=literal(name.replace("/", " ")),
    )


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Each value averaged with up to `reach` neighbours on either side, fewer near the ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        means.append((sums[index + near + 1] - sums[index - near]) / (2 * near + 1))
    return means


def _finite(curve: Curve) -> Curve:
    return [(step, value) for step, value in curve if math.isfinite(value)]


def _log_if_wide(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the losses span more than a factor of 30."""
    from matplotlib.ticker import LogLocator, NullLocator

    if min(values) > 0 and max(values) / min(values) > 30:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _mark_best(run: runs.Run, axes: list[Axes], curve: Curve) -> None:
    """A line through all panels at the best step, and its value above the panel where the goal is drawn."""
    step = (run.result or {}).get("best_step")
    value = None if step is None else dict(curve).get(step)
    if step is None or value is None:
        return
    for axis in axes:
        axis.axvline(step, color=GREY, linestyle=(0, (2, 2)), linewidth=1, zorder=1)
    axes[-1].plot([step], [value], "o", markersize=8, color=RED, markeredgecolor="white", markeredgewidth=1.2, zorder=5)
    axes[-1].annotate(
        f"best {value:.4g} at step {step:,}",
        (1, 1),
        xytext=(0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=RED,
        fontweight="bold",
    )
