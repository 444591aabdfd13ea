"""Rows with a label or numbers to predict, from a picture or from numbers: what files and the hub give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlrun.contracts import Dataset, DataSpec
from dlrun.data._assemble import Parts, Settings, finish, portions
from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._columns import Columns, Wanted, check, choose
from dlrun.data._held import Reader
from dlrun.data._labels import Labels, check_classes, class_names, given_by, read_labels, to_indices
from dlrun.data._numbers import Numbers
from dlrun.data._pictures import Pictures
from dlrun.data._source import Source
from dlrun.errors import DlrunError


def assemble(
    sources: Mapping[str, Source], wanted: Wanted, settings: Settings, known: DataSpec | None, notes: list[str]
) -> Dataset:
    """The Dataset of one source for each given split. notes: what was said so far."""
    first = sources.get("train") or next(iter(sources.values()))
    columns, guesses = choose(first, wanted) if known is None else (_known_columns(wanted, known), [])
    for source in sources.values():
        check(source, columns)
    names, labels = columns.targets, None
    if not columns.is_number:
        names, labels = label_indices(sources, columns, known, settings.bad)
    parts, made = portions({name: len(source) for name, source in sources.items()}, labels, settings.hold_out)
    if known is None and labels is not None:
        made += check_classes(labels["train"][parts["train"].rows], names, first.name, columns.targets[0])
    inputs = _inputs(sources, columns, settings, parts, known)
    targets = {
        name: Labels(labels[name]) if labels is not None else Numbers(source, columns.targets, "target")
        for name, source in sources.items()
    }
    draft = _draft(columns, names, next(iter(inputs.values())), settings)
    if known is None and len(columns.targets) > 1:
        draft.assets["target_std"] = _deviations(targets["train"], parts["train"].rows, settings.bad)
    readers: dict[str, list[Reader]] = {name: [inputs[name], targets[name]] for name in sources}
    return finish(readers, parts, settings, draft, known, [*notes, *guesses, *made])


def _known_columns(wanted: Wanted, known: DataSpec) -> Columns:
    """The columns of the source run, but for those that are named anew."""
    assets, is_number = known.assets, known.target == "target"
    targets = wanted.target or (list(known.labels) if is_number else assets["target_column"])
    names = tuple(targets) if isinstance(targets, list) else (targets,)
    if is_number and len(names) != known.sizes["targets"]:
        raise DlrunError(
            f"data.target: the run was trained to predict {known.sizes['targets']} numbers, not {len(names)}"
        )
    if assets["kind"] == "image":
        return Columns(names, is_number, wanted.image or assets["image_column"])
    return Columns(names, is_number, None, tuple(assets["columns"]))


def label_indices(
    sources: Mapping[str, Source], columns: Columns, known: DataSpec | None, bad: BadRows
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes in order, and each source's int64 class indices; -1 of a row that has none, which is bad."""
    column = columns.targets[0]
    coded = {name: read_labels(source, column, bad) for name, source in sources.items()}
    if known is not None:
        classes = known.labels
    else:
        classes = class_names(coded["train"], [other for name, other in coded.items() if name != "train"])
    return classes, {name: to_indices(sources[name], column, coded[name], classes) for name in sources}


def _inputs(
    sources: Mapping[str, Source], columns: Columns, settings: Settings, parts: Parts, known: DataSpec | None
) -> dict[str, Pictures | Numbers]:
    if columns.image is None:
        return {name: Numbers(source, columns.features, "features") for name, source in sources.items()}
    decoder = settings.decoder(sources, columns.image, parts, known)
    return {name: Pictures(Cells(source, columns.image), decoder) for name, source in sources.items()}


def _deviations(targets: Numbers | Labels, rows: np.ndarray, bad: BadRows) -> list[float]:
    """Of each number to predict, over the training rows; 1 of one that never varies."""
    values, is_good = targets.read(rows, bad)
    std_T = values["target"][is_good].astype(np.float64).std(0)
    return np.where(std_T > 0, std_T, 1.0).tolist()


def _draft(columns: Columns, names: tuple[str, ...], inputs: Pictures | Numbers, settings: Settings) -> DataSpec:
    """What a model must know, but for mean and std."""
    sizes: dict[str, int] = {"targets" if columns.is_number else "classes": len(names)}
    assets: dict[str, Any] = {} if columns.is_number else {"target_column": columns.targets[0], **given_by(names)}
    if isinstance(inputs, Pictures):
        field, shape = "image", inputs.decoder.shape
        sizes |= dict(zip(("channels", "height", "width"), shape, strict=True))
        assets |= {"kind": "image", "image_column": columns.image, "image_size": settings.image_size}
        assets |= {} if settings.crop is None else {"crop": list(settings.crop)}
    else:
        field, shape = "features", (len(columns.features),)
        sizes["features"] = len(columns.features)
        assets |= {"kind": "table", "columns": list(columns.features)}
    return DataSpec((field,), "target" if columns.is_number else "label", sizes, {field: shape}, names, assets)
