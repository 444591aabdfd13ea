"""Tables of pictures with a column of boxes, as detection sets of the Hugging Face hub have: local files or the hub."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Settings, spec_of
from dlrun.data._boxes import Annotations
from dlrun.data._columns import guess_image, require
from dlrun.data._detection import assemble_boxes, bad_boxes
from dlrun.data._hub import any_sources
from dlrun.data._inputs import make_inputs
from dlrun.data._labels import Coded
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.errors import DlrunError, Exit

_BOXES = ("bbox", "bboxes", "boxes", "box")
_CATEGORIES = ("category", "categories", "label", "labels", "category_id", "class", "classes")


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    objects: str = "objects",
    bbox_format: Literal["coco", "voc"] = "coco",
    clip_boxes: bool = False,
    splits: dict | None = None,
    image_size: int | list | None = None,
    channels: int | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    valid_size: int | None = None,
    test_size: int | None = None,
    train_size: int | None = None,
    split_seed: int | None = None,
    blocks: int | None = None,
    valid_blocks: list | None = None,
    test_blocks: list | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    max_bad: int = 10,
    memory: Literal["auto", "always", "never"] = "auto",
    mean: list | None = None,
    std: list | None = None,
) -> Dataset:
    """Rows of a picture and its boxes: a column with {bbox: [[…] for each box], category: [… for each box]}.

    Settings:
        path: a table (parquet, json lines), a folder of tables, or ORG/NAME on the hub.
        config: which of a hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of a hub data set; its newest unless set.
        image: the picture's column; guessed.
        objects: the column of boxes.
        bbox_format: coco (left, top, width, height) or voc (left, top, right, bottom), in pixels of the picture.
        clip_boxes: cut boxes that reach out of their picture; such a box is bad otherwise, a pixel aside.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        image_size: pixels that every picture is scaled to, one number or [height, width]; needed if they differ.
        channels: 1 grey, 3 colour; guessed from a sample of the pictures.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain.
        split_seed: chooses the rows held out; the run's seed unless set.
        blocks: cut the training rows, in their order, into this many equal blocks to hold out (for rows in time).
        valid_blocks: numbers of the blocks held out for valid, counted from 0.
        test_blocks: the same for test.
        on_bad: raise at a bad picture or box, or skip it: a row whose picture is bad, else the box alone.
        max_bad: rows and boxes that may be skipped before it is an error; a stream counts in each worker process.
        memory: auto holds decoded rows in memory if they take at most a quarter of what is free, else streams them.
        mean: of each channel (pixels as 0..1), for normalising; measured over the training rows.
        std: as mean.
    """
    known = spec_of(tools)
    sources, notes = any_sources(path, config, revision, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(hold_out, bad_boxes(on_bad, max_bad), image_size, channels, memory, mean, std)
    first = next(sources[name] for name in ("train", *sources) if name in sources)
    if image is None:
        image = known.assets["image_column"] if known else guess_image(first, [objects])
        notes += [] if known else [f"image column: {image} (guessed)"]
    if image is None:
        has = ", ".join(first.columns)
        raise DlrunError(f"{first.name}: which column is the picture? It has {has}", "name it: data.image=COLUMN")
    found = {name: _annotations(source, image, objects, bbox_format) for name, source in sources.items()}
    return assemble_boxes(found, clip_boxes, settings, known, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)


def _annotations(source: Source, image: str, objects: str, bbox_format: str) -> Annotations:
    """The boxes of a column of {bbox, category} of lists, or of lists of {bbox, category}."""
    require(source, "image", image)
    require(source, "objects", objects)
    cells = source.table.column(objects).to_pylist()
    boxes_of, categories_of = _fields(source, objects)
    rows, boxes, said, unusable = [], [], [], {}
    for row, cell in enumerate(cells):
        mine, classes = _members(cell, boxes_of), _members(cell, categories_of)
        if len(mine) != len(classes):
            unusable[row] = f"{len(mine)} boxes, and {len(classes)} categories"
            continue
        rows += [row] * len(mine)
        boxes += [_corners(box, bbox_format) for box in mine]
        said += classes
    coded = _coded(said, source.class_names.get(f"{objects}.{categories_of}"))
    return Annotations(
        source,
        image,
        np.array(rows, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        coded,
        np.zeros(len(rows), dtype=bool),
        _numbered(rows),
        np.zeros((len(source), 2), dtype=np.int64),
        {index: f"category {said[index]!r}" for index in np.flatnonzero(coded.codes_N < 0).tolist()},
        unusable=unusable,
    )


def _fields(source: Source, objects: str) -> tuple[str, str]:
    """The names of the boxes and of the categories inside the column."""
    import pyarrow.types as types

    kind = source.table.column(objects).type
    kind = kind.value_type if hasattr(kind, "value_type") else kind
    inside = [kind.field(index).name for index in range(kind.num_fields)] if types.is_struct(kind) else []
    boxes = next((name for name in _BOXES if name in inside), None)
    categories = next((name for name in _CATEGORIES if name in inside), None)
    if boxes is None or categories is None:
        raise DlrunError(
            f"data.objects: column '{objects}' of {source.name} holds {', '.join(inside) or kind}",
            "it needs bbox and category: a list of boxes and a list of their classes",
            Exit.DATA,
        )
    return boxes, categories


def _members(cell: dict | list | None, name: str) -> list:
    """One field of all boxes of a row."""
    if isinstance(cell, dict):
        return list(cell[name] or ())
    return [member and member[name] for member in cell or ()]


def _corners(given: object, bbox_format: str) -> list[float]:
    """Left, top, right, bottom; nan if there are no four numbers."""
    try:
        left, top, third, fourth = map(float, given if isinstance(given, list | tuple) else ())
    except (TypeError, ValueError, OverflowError):
        return [float("nan")] * 4
    return [left, top, left + third, top + fourth] if bbox_format == "coco" else [left, top, third, fourth]


def _coded(said: list, names: tuple[str, ...] | None) -> Coded:
    """Categories as declared classes, or as the numbers or words there are."""
    if names is not None:
        codes = [code if type(code) is int and 0 <= code < len(names) else -1 for code in said]
        return Coded(names, np.array(codes, dtype=np.int64), declared=True)
    words = sorted({str(value) for value in said if value is not None})
    code_of = {word: code for code, word in enumerate(words)}
    codes = [-1 if value is None else code_of[str(value)] for value in said]
    return Coded(tuple(words), np.array(codes, dtype=np.int64), declared=False)


def _numbered(rows: list[int]) -> list[str]:
    """What to call each box: its place among those of its row."""
    first = {row: index for index, row in reversed(list(enumerate(rows)))}
    return [f"box {index - first[row]}" for index, row in enumerate(rows)]
