"""Pictures with masks, a class for each pixel: tables, folders of images beside folders of masks, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Parts, Settings, finish, portions, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._cells import Cells
from dlrun.data._coding import Coding, Named, choose_coding, mask_values
from dlrun.data._columns import guess_image, require
from dlrun.data._hub import any_sources
from dlrun.data._images import BadPicture, height_width, strictly
from dlrun.data._inputs import make_inputs
from dlrun.data._mask_folders import find_pairs, pair_sources
from dlrun.data._masks import Masks, other_size
from dlrun.data._pictures import Pictures
from dlrun.data._source import Source
from dlrun.data._splits import HoldOut
from dlrun.data._survey import Seen, look, shared_size
from dlrun.errors import DlrunError, Exit

_NAMES = ("mask", "masks", "segmentation", "segmentation_mask", "annotation", "semantic", "label", "labels")
_LOOKED_AT = 2_000  # masks at most, to find their values


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    mask: str | None = None,
    classes: list | None = None,
    values: list | None = None,
    ignored: list | None = None,
    splits: dict | None = None,
    image_size: int | list | None = None,
    mask_size: int | list | None = None,
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
    """Rows of a picture and its mask, whose pixels are numbers of classes (grey levels, or indices of a palette).

    Settings:
        path: a table, a folder of tables, a folder with images/ and masks/ (also within train/, valid/, test/), one
            with train/ and trainannot/, or ORG/NAME on the hub.
        config: which of a hub data set's configurations; needed where it has several.
        revision: a commit, tag or branch of a hub data set; its newest unless set.
        image: the picture's column, where there are columns; guessed.
        mask: the mask's column; guessed from a name such as mask, annotation, label.
        classes: names of the classes in order of their values; the values themselves unless set.
        values: the masks' value of each class; 0, 1, 2 and so on without those ignored, unless set.
        ignored: values of pixels that are neither trained on nor scored.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split, a file, a folder or a pattern.
        image_size: pixels that every picture is scaled to, one number or [height, width]; needed if they differ.
        mask_size: pixels that every mask is scaled to, to the nearest one; as they are unless set.
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
        on_bad: raise at a row that cannot be read (no mask, one of another size, an unknown value), or skip it.
        max_bad: rows that may be skipped before it is an error; a stream counts in each worker process.
        memory: auto holds decoded rows in memory if they take at most a quarter of what is free, else streams them.
        mean: of each channel (pixels as 0..1), for normalising; measured over the training rows.
        std: as mean.
    """
    known = spec_of(tools)
    sources, notes = _sources(path, config, revision, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(hold_out, BadRows(on_bad, max_bad), image_size, channels, memory, mean, std)
    parts, made = portions({name: len(source) for name, source in sources.items()}, None, hold_out)
    columns, guesses = _columns(sources, image, mask, known)
    if known is None:
        named = choose_coding(classes, values, ignored, _looking(sources, columns[1], parts, settings.bad))
    else:
        coding = Coding(tuple(known.assets["mask_values"]), tuple(known.assets["ignored"]))
        named = Named(coding, known.labels, [])
    readers = _readers(sources, columns, parts, settings, named.coding, mask_size, known)
    draft = _draft(next(iter(readers.values())), columns, named.names, image_size, mask_size)
    each = {name: [reader] for name, reader in readers.items()}
    return finish(each, parts, settings, draft, known, [*notes, *guesses, *named.notes, *made])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)


def _sources(
    path: str, config: str | None, revision: str | None, splits: Mapping[str, str] | None, needs_train: bool
) -> tuple[dict[str, Source], list[str]]:
    root = Path(path).expanduser().absolute()
    if path and root.is_dir() and (pairs := find_pairs(root)):
        return pair_sources(root, pairs, splits, needs_train)
    return any_sources(path, config, revision, splits, needs_train)


def _columns(
    sources: Mapping[str, Source], image: str | None, mask: str | None, known: DataSpec | None
) -> tuple[tuple[str, str], list[str]]:
    """The columns of the picture and the mask, and a sentence for each that was guessed."""
    first, notes = next(sources[name] for name in ("train", *sources) if name in sources), []
    if known is not None:
        image, mask = image or known.assets["image_column"], mask or known.assets["mask_column"]
    has = ", ".join(first.columns)
    if mask is None:
        mask = next((name for wanted in _NAMES for name in first.columns if name.lower() == wanted), None)
        if mask is None:
            raise DlrunError(f"{first.name}: which column is the mask? It has {has}", "name it: data.mask=COLUMN")
        notes.append(f"mask column: {mask} (guessed)")
    for source in sources.values():
        require(source, "mask", mask)
    if image is None:
        image = guess_image(first, [mask])
        if image is None:
            raise DlrunError(f"{first.name}: which column is the picture? It has {has}", "name it: data.image=COLUMN")
        notes.append(f"image column: {image} (guessed)")
    for source in sources.values():
        require(source, "image", image)
    return (image, mask), notes


def _looking(sources: Mapping[str, Source], column: str, parts: Parts, bad: BadRows) -> Callable[[], set[int]]:
    """A function that finds the values of the training masks, or of a sample of them."""
    train = parts["train"]
    cells = Cells(sources[train.source], column)

    def look() -> set[int]:
        seen: set[int] = set()
        with strictly():
            for row in _sample(cells, train.rows, _LOOKED_AT).tolist():
                try:
                    seen.update(np.unique(mask_values(cells.given(row), cells.source.folder)).tolist())
                except BadPicture as error:
                    bad.report(cells.place(row), str(error))
        return seen

    return look


def _sample(cells: Cells, rows: np.ndarray, most: int) -> np.ndarray:
    """Rows that have a mask, evenly spread. Raises DlrunError if there are none."""
    found = [row for row in rows[:: -(-len(rows) // most)].tolist() if not cells.is_empty(row)]
    if not found:
        raise DlrunError(f"{cells.source.name}: no row has a mask in column '{cells.column}'", code=Exit.DATA)
    return np.array(found)


def _readers(
    sources: Mapping[str, Source],
    columns: tuple[str, str],
    parts: Parts,
    settings: Settings,
    coding: Coding,
    mask_size: int | list | None,
    known: DataSpec | None,
) -> dict[str, Masks]:
    decoder = settings.decoder(sources, columns[0], parts, known)
    cells = {name: Cells(source, columns[1]) for name, source in sources.items()}
    pictures = {name: Cells(source, columns[0]) for name, source in sources.items()}
    size = _mask_size(mask_size, pictures, cells, parts, settings.bad, known)
    is_scaled = mask_size is not None or (known is not None and known.assets["mask_size"] is not None)
    return {
        name: Masks(Pictures(pictures[name], decoder, sized=True), cells[name], coding, *size, is_scaled)
        for name in sources
    }


def _mask_size(
    mask_size: int | list | None,
    pictures: Mapping[str, Cells],
    cells: Mapping[str, Cells],
    parts: Parts,
    bad: BadRows,
    known: DataSpec | None,
) -> tuple[int, int]:
    """Height and width of every mask: as the source run had them, as set, else what they share."""
    if known is not None:
        return known.sizes["mask_height"], known.sizes["mask_width"]
    if (size := height_width(mask_size, "data.mask_size")) is not None:
        return size
    train = parts["train"]
    masks = look(cells[train.source], _sample(cells[train.source], train.rows, 64), bad)
    return shared_size(cells[train.source], _fitting(masks, pictures[train.source], cells[train.source], bad), "mask")


def _fitting(masks: list[Seen], pictures: Cells, cells: Cells, bad: BadRows) -> list[Seen]:
    """Those of the size of their own picture; the others are bad rows."""
    sizes = {seen.row: (seen.height, seen.width) for seen in look(pictures, np.array([one.row for one in masks]), bad)}
    fitting = []
    for mask in masks:
        size = sizes.get(mask.row)
        if size == (mask.height, mask.width):
            fitting.append(mask)
        elif size is not None:
            bad.report(cells.place(mask.row), other_size((mask.height, mask.width), size))
    if not fitting:
        raise DlrunError(f"{cells.source.name}: no mask looked at has the size of its picture", code=Exit.DATA)
    return fitting


def _draft(
    reader: Masks, columns: tuple[str, str], names: tuple[str, ...], image_size: int | list | None,
    mask_size: int | list | None,
) -> DataSpec:  # fmt: skip
    """What a model must know, but for mean and std."""
    shape, coding = reader.pictures.decoder.shape, reader.coding
    sizes = dict(zip(("channels", "height", "width"), shape, strict=True))
    sizes |= {"pixel_classes": len(names), "mask_height": reader.height, "mask_width": reader.width}
    assets = {"kind": "image", "image_column": columns[0], "image_size": image_size, "mask_column": columns[1],
              "mask_size": mask_size, "mask_values": list(coding.values), "ignored": list(coding.ignored)}  # fmt: skip
    return DataSpec(("image",), "mask", sizes, {"image": shape}, names, assets)
