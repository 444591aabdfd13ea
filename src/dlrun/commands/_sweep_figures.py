"""A sweep in pictures: how the best value came about, which settings mattered, which went together."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun.commands import _drawing as drawing
from dlrun.commands._terminal import number

_BINS = 6  # of a colour scale from the worst to the best


def draw(
    folder: Path,
    title: str,
    goal: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[str] = (),
    front: Sequence[int] = (),
) -> dict[str, Path]:
    """history.png, parallel.png and slices.png into a folder, and front.png where there are other objectives; returns
    their paths by name. front: numbers of the trials that no other beats in all of them."""
    import matplotlib

    folder.mkdir(exist_ok=True)
    made = {}
    known = _with_numbers([row for row in rows if row["values"]])
    with matplotlib.rc_context(drawing.STYLE):  # type: ignore[arg-type]
        for name, figure in (("history", _history), ("parallel", _parallel), ("slices", _slices)):
            made[name] = folder / f"sweep-{name}.png"
            figure(title, goal, known).savefig(made[name])
        if others:
            made["front"] = folder / "sweep-front.png"
            _front(title, [goal["name"], *others], known, front).savefig(made["front"])
    return made


def _with_numbers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, the words of a choice among numbers made numbers: 256 does not stand before 32."""

    def as_number(value: Any) -> float | None:
        try:
            return float(value)
        except (TypeError, ValueError):
            return None

    names = {name for row in rows for name in row["settings"]}
    given = {name: [row["settings"][name] for row in rows if name in row["settings"]] for name in names}
    numeric = {name for name, values in given.items() if None not in map(as_number, values)}
    return [
        {**row, "settings": {k: as_number(v) if k in numeric else v for k, v in row["settings"].items()}}
        for row in rows
    ]


def _history(title: str, goal: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    figure = drawing.new_figure(7, 3.6)
    axis = figure.subplots()
    best: list[float] = []
    choose = max if goal["mode"] == "max" else min
    for row in rows:
        best.append(choose([*best[-1:], row["values"][0]]))
    numbers = [row["number"] for row in rows]
    for state, colour in (("complete", drawing.BLUE), ("pruned", drawing.GREY)):
        mine = [row for row in rows if row["state"] == state]
        axis.scatter([r["number"] for r in mine], [r["values"][0] for r in mine], s=22, color=colour, label=state)
    axis.step(numbers, best, where="post", color=drawing.ORANGE, label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel(goal["name"])
    axis.legend(loc="best")
    drawing.headline(axis, title, f"{len(rows)} trials with a value")
    return figure


def _parallel(title: str, goal: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    figure = drawing.new_figure(2.2 + 1.6 * len(names), 4.2)
    axis = figure.subplots()
    scales = {name: _Scale([row["settings"][name] for row in rows if name in row["settings"]]) for name in names}
    values = _Scale([row["values"][0] for row in rows])
    order = sorted(rows, key=lambda row: row["values"][0], reverse=goal["mode"] == "min")
    for rank, row in enumerate(order):  # the best are drawn last, on top
        places = [scales[name].place(row["settings"].get(name)) for name in names] + [values.place(row["values"][0])]
        share = rank / max(1, len(order) - 1)
        axis.plot(range(len(places)), places, color=_shade(share), alpha=0.35 + 0.6 * share, linewidth=1 + share)
    for index, scale in enumerate([*scales.values(), values]):
        axis.axvline(index, color=drawing.QUIET, linewidth=0.8)
        for place, text in scale.ticks():
            axis.annotate(text, (index, place), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center")
    axis.set_xticks(range(len(names) + 1), [*map(drawing.shortened, names), goal["name"]])
    axis.set_yticks([])
    axis.set_ylim(-0.06, 1.06)
    axis.grid(False)
    drawing.headline(axis, title, "one line a trial; the darker, the better")
    return figure


def _slices(title: str, goal: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    figure = drawing.new_figure(max(4.0, 3.0 * len(names)), 3.4)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        mine = [row for row in rows if name in row["settings"]]
        given = [row["settings"][name] for row in mine]
        scale = _Scale(given)
        x = given if scale.numeric else [scale.names.index(str(value)) for value in given]
        colours = [drawing.BLUE if row["state"] == "complete" else drawing.GREY for row in mine]
        axis.scatter(x, [row["values"][0] for row in mine], s=22, c=colours)
        if scale.numeric and scale.log:
            axis.set_xscale("log")
        if not scale.numeric:
            axis.set_xticks(range(len(scale.names)), [drawing.shortened(text, 10) for text in scale.names])
        axis.set_xlabel(drawing.literal(name))
    axes[0].set_ylabel(goal["name"])
    drawing.headline(axes[0], title)
    return figure


def _front(title: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], front: Sequence[int]) -> Any:
    """The first two objectives of each trial; those that none beats in all objectives stand out, numbered."""
    figure = drawing.new_figure(6, 4.2)
    axis = figure.subplots()
    unbeaten = [row for row in rows if row["number"] in front]
    beaten = [row for row in rows if row["number"] not in front]
    for mine, colour, label in ((beaten, drawing.GREY, "beaten by another"), (unbeaten, drawing.ORANGE, "front")):
        x, y = [row["values"][1] for row in mine], [row["values"][0] for row in mine]
        axis.scatter(x, y, s=26, color=colour, label=label)
    for row in unbeaten:
        place = (row["values"][1], row["values"][0])
        axis.annotate(str(row["number"]), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    if _Scale([row["values"][1] for row in rows]).log:
        axis.set_xscale("log")
    axis.set_xlabel(names[1])
    axis.set_ylabel(names[0])
    axis.legend(loc="best")
    below = f"no trial beats those of the front in all {len(names)} objectives"
    drawing.headline(axis, title, below)
    return figure


class _Scale:
    """Values of one setting on 0..1: numbers by size (on a log scale where they span it), words in order."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.numeric = all(isinstance(value, (int, float)) for value in values)
        self.names = sorted({str(value) for value in values})
        numbers = [float(value) for value in values] if self.numeric else []
        self.low, self.high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
        self.log = self.numeric and self.low > 0 and self.high / self.low > 30

    def place(self, value: Any) -> float:
        """0..1; nan for a setting the trial does not have."""
        if value is None:
            return math.nan
        if not self.numeric:
            return self.names.index(str(value)) / max(1, len(self.names) - 1)
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return 0.5 if high == low else (value - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """A few places and what stands there."""
        if not self.numeric:
            return [(self.place(name), drawing.shortened(name, 12)) for name in self.names]
        return [(self.place(value), number(value)) for value in dict.fromkeys([self.low, self.high])]


def _shade(share: float) -> tuple[float, float, float]:
    """From a light grey to blue."""
    light, dark = (0.78, 0.82, 0.86), (0.0, 0.447, 0.698)
    step = round(share * _BINS) / _BINS
    return tuple(a + (b - a) * step for a, b in zip(light, dark, strict=True))  # type: ignore[return-value]


def page(
    title: str,
    goal: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    importance: Mapping[str, float],
    pictures: Mapping[str, Path],
    others: Sequence[str] = (),
    front: Sequence[int] = (),
) -> str:
    """One HTML page that needs nothing else: the leaderboard, the importances, the pictures."""
    names = list(dict.fromkeys(name for row in rows for name in row["settings"]))
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("trial", "run", goal["name"], *others, *names, "state"))
    lines = []
    for row in rows:
        cells = [row["number"], (row["run"] or "")[:8], *map(number, row["values"] or ["–"] * (1 + len(others)))]
        cells += [number(row["settings"].get(name, "–")) for name in names]
        state = f"{row['state']}: {row['reason']}" if row["state"] == "fail" else row["state"]
        state = "front" if row["number"] in front else state
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in [*cells, state]) + "</tr>")
    bars = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{share:.0%}</td>"
        f'<td class=bar><i style="width:{100 * share:.0f}%"></i></td></tr>'
        for name, share in importance.items()
    )
    shown = "".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for name, path in pictures.items()
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;color:#22262b;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.2rem .8rem .2rem 0;text-align:left;white-space:nowrap}}
th{{border-bottom:1px solid #b8bdc4}}td.bar{{width:16rem}}td.bar i{{display:block;height:.7rem;background:#0072b2}}
img{{max-width:100%;margin:1rem 0;display:block}}</style>
<h1>{html.escape(title)}</h1><h2>Trials, the best first</h2><div style="overflow-x:auto"><table><tr>{head}</tr>
{"".join(lines)}</table></div><h2>What mattered for {html.escape(goal["name"])}</h2>
<table>{bars or "<tr><td>too few trials to say</td></tr>"}</table>
{shown}</html>
"""
