"""The picture of an ensemble: members beside it, who errs alike, what each further member brings, what is sure."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands._drawing import BLUE, GREEN, GREY, ORANGE, STYLE, headline, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(found: Mapping[str, Any], path: Path) -> Path:
    """Draw the panels that the report has numbers for into one PNG."""
    from matplotlib import rc_context

    panels: list[Callable[[Axes, Mapping[str, Any]], None]] = [_scores]
    panels += [_correlations] if found.get("error_correlation") else []
    panels += [_costs] if found.get("subset") else []
    panels += [_coverage] if found.get("selective") else []
    panels += [_shift] if found.get("shift") else []
    with rc_context(STYLE):  # type: ignore[arg-type]
        columns = min(2, len(panels))
        lines = -(-len(panels) // columns)
        figure = new_figure(5.4 * columns, 3.6 * lines)
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis, found)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white", dpi=100)
    path.parent.mkdir(exist_ok=True)
    runs.write_atomically(path, buffer.getvalue())
    return path


def _name(found: Mapping[str, Any]) -> str:
    return f"{found['goal']['split']} {found['goal']['name']}"


def _scores(axis: Axes, found: Mapping[str, Any]) -> None:
    """One dot a member, over the ensemble's line."""
    values = [row["value"] for row in found["members"]]
    axis.axvline(found["ensemble"]["value"], color=GREEN, label="ensemble")
    axis.plot(values, range(len(values)), "o", color=BLUE, markersize=6, label="member")
    size = 10 if len(values) <= 10 else 6
    axis.set_yticks(range(len(values)), [literal(row["short"]) for row in found["members"]], fontsize=size)
    axis.invert_yaxis()
    axis.margins(y=0.2)
    axis.set_xlabel(literal(_name(found)))
    axis.legend(loc="best")
    headline(axis, f"{found['method']} of {len(values)}")


def _correlations(axis: Axes, found: Mapping[str, Any]) -> None:
    """The correlation of errors, as numbers where there is room."""
    values = found["error_correlation"]
    size = len(values)
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
    axis.grid(visible=False)
    axis.set_xticks(range(size), [str(index + 1) for index in range(size)])
    axis.set_yticks(range(size), [str(index + 1) for index in range(size)])
    for line in range(size) if size <= 10 else ():
        for column in range(size):
            color = "white" if values[line][column] > 0.6 else "black"
            axis.text(column, line, f"{values[line][column]:.2f}", ha="center", va="center", color=color, fontsize=8)
    headline(axis, "Correlation of errors")


def _costs(axis: Axes, found: Mapping[str, Any]) -> None:
    """The goal over the cost, member by member."""
    path = found["subset"]["path"]
    whole = path[-1]["cost"] or 1.0
    costs = [step["cost"] / whole for step in path]
    axis.plot(costs, [step["test"] for step in path], "o-", color=BLUE, markersize=4.5, label=found["goal"]["split"])
    axis.plot(costs, [step["valid"] for step in path], "o-", color=ORANGE, markersize=4.5, label="valid")
    axis.axvline(costs[len(found["subset"]["suggested"]) - 1], color=GREY, linestyle=(0, (2, 2)), linewidth=1)
    axis.set_xlabel("share of the cost of all members")
    axis.legend(loc="best")
    headline(axis, f"{literal(found['goal']['name'])} for its cost")


def _coverage(axis: Axes, found: Mapping[str, Any]) -> None:
    """The goal over the surest share of the examples."""
    axis.plot(found["selective"]["coverage"], found["selective"]["goal"], color=BLUE)
    axis.set_xlabel("share of the examples, the surest first")
    axis.set_ylabel(literal(_name(found)))
    headline(axis, "Leaving out what is unsure")


def _shift(axis: Axes, found: Mapping[str, Any]) -> None:
    """How unsure the ensemble is of examples as they are, and of the same with noise."""
    shift = found["shift"]
    edges = shift["histogram"]["edges"]
    for name, color in (("clean", BLUE), ("shifted", ORANGE)):
        axis.stairs(shift["histogram"][name], edges, color=color, label=name)
    axis.set_xlabel("entropy in nats")
    axis.set_ylabel("examples")
    axis.legend(loc="best")
    headline(axis, f"Shifted inputs, AUROC {shift['entropy']:.2f}")
