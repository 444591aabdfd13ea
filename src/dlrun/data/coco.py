"""Pictures with boxes in COCO's json format, in a folder or a zip file."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Settings, spec_of
from dlrun.data._coco import find_splits, read_splits
from dlrun.data._detection import assemble_boxes, bad_boxes, open_boxes
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut


def build(
    tools: Tools,
    *,
    path: str = "",
    splits: dict | None = None,
    images: str | dict | None = None,
    clip_boxes: bool = False,
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
    """Rows of a picture and its boxes: one json file a split with the lists images, annotations and categories.

    Settings:
        path: a folder, or a zip file (read where it lies), with the json files and the pictures at any depth.
        splits: {train: FILE, valid: FILE, test: FILE}, json files by path or name; guessed from the split's word in
            the names of files (instances_train2017.json) or folders (train/_annotations.coco.json).
        images: the pictures' folder in path or elsewhere, or {train: FOLDER, …}; guessed.
        clip_boxes: cut boxes that reach out of their picture; such a box is bad otherwise, a pixel aside.
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
    tree = open_boxes(path)
    chosen, notes = find_splits(tree, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(hold_out, bad_boxes(on_bad, max_bad), image_size, channels, memory, mean, std)
    found, remarks = read_splits(tree, chosen, images, on_bad)
    return assemble_boxes(found, clip_boxes, settings, known, [*notes, *remarks])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)
