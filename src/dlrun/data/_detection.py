"""From the boxes that were found to a Dataset: what COCO, VOC and tables of objects have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec
from dlrun.data._assemble import Parts, Settings, finish, portions
from dlrun.data._bad import BadRows
from dlrun.data._boxes import Annotations, Boxes, BoxTable, choose_classes, sound_boxes
from dlrun.data._cells import Cells
from dlrun.data._hub import may_be_name
from dlrun.data._pictures import Pictures
from dlrun.data._tree import Archive, Folder, open_tree
from dlrun.errors import DlrunError


def bad_boxes(on_bad: Literal["raise", "skip"], max_bad: int) -> BadRows:
    """The budget of rows and boxes that cannot be used."""
    return BadRows(on_bad, max_bad, ("row or box", "rows or boxes"))


def open_boxes(path: str) -> Folder | Archive:
    """The folder or zip file a user named. Raises DlrunError that says what is there instead."""
    try:
        return open_tree(path)
    except DlrunError as error:
        if not may_be_name(path):
            raise
        hint = f"{error.hint}; data sets of the hub are read by data=objects: data=objects data.path={path}"
        raise DlrunError(error.message, hint, error.code) from error


def assemble_boxes(
    found: Mapping[str, Annotations], clip: bool, settings: Settings, known: DataSpec | None, notes: Sequence[str]
) -> Dataset:
    """The Dataset of the boxes of each given split. clip: cut boxes that reach out of their picture."""
    sources = {name: each.source for name, each in found.items()}
    parts, made = portions({name: len(source) for name, source in sources.items()}, None, settings.hold_out)
    classes = choose_classes(found, known.labels if known else None)
    tables = {name: sound_boxes(each, classes, clip, settings.bad) for name, each in found.items()}
    column = next(iter(found.values())).column
    decoder = settings.decoder(sources, column, parts, known)
    num_boxes = max(known.sizes["boxes"] if known else 1, _fullest(tables, parts))
    readers = {
        name: [Boxes(Pictures(Cells(each.source, each.column), decoder, sized=True), tables[name], num_boxes)]
        for name, each in found.items()
    }
    sizes = {"box_classes": len(classes), "boxes": num_boxes}
    sizes |= dict(zip(("channels", "height", "width"), decoder.shape, strict=True))
    assets = {"kind": "image", "image_column": column, "image_size": settings.image_size}
    draft = DataSpec(("image",), "boxes", sizes, {"image": decoder.shape}, classes, assets)
    unseen = _unseen(tables, parts, classes) if known is None else []
    return finish(readers, parts, settings, draft, known, [*notes, *made, *unseen])


def _fullest(tables: Mapping[str, BoxTable], parts: Parts) -> int:
    """Boxes of the picture that has most."""
    return max(int(tables[part.source].counts(part.rows).max(initial=0)) for part in parts.values())


def _unseen(tables: Mapping[str, BoxTable], parts: Parts, classes: Sequence[str]) -> list[str]:
    """A sentence about classes without boxes to train on."""
    table, rows = tables["train"], parts["train"].rows
    is_mine_M = np.repeat(np.isin(np.arange(len(table.sizes_N2)), rows), np.diff(table.starts_N1))
    counts_K = np.bincount(table.labels_M[:-1][is_mine_M], minlength=len(classes))
    absent = [classes[index] for index in np.flatnonzero(counts_K == 0).tolist()]
    return [f"no training box is of the class {', '.join(absent[:8])}"] if absent else []
