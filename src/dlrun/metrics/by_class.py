"""One line of a metric's values by class, for whoever reads the numbers of a run."""

from __future__ import annotations

from collections.abc import Sequence


def line_by_class(name: str, values: Sequence[float | None], labels: Sequence[str]) -> str:
    """ "iou: sky 0.912, road 0.800, mark none". labels: names in order of the classes, or none: then their numbers."""
    names = labels or [str(index) for index in range(len(values))]
    each = (
        f"{label} {'none' if value is None else format(value, '.3f')}"
        for label, value in zip(names, values, strict=True)
    )
    return f"{name}: {', '.join(each)}"
