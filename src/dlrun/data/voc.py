"""Pictures with boxes as Pascal VOC has them (JPEGImages, Annotations, ImageSets/Main), in a folder or a zip file."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Settings, spec_of
from dlrun.data._detection import assemble_boxes, bad_boxes, open_boxes
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut
from dlrun.data._voc import choose_splits, find_layout, read_split


def build(
    tools: Tools,
    *,
    path: str = "",
    splits: dict | None = None,
    one_based: bool = False,
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
    """Rows of a picture and its boxes; a box that is difficult counts as a crowd.

    Settings:
        path: the folder with JPEGImages, Annotations and ImageSets/Main, one above it, or a zip file of it.
        splits: {train: NAME, valid: NAME, test: NAME}, lists of ImageSets/Main such as trainval; guessed.
        one_based: the first pixel is 1 and the last belongs to the box, as in the original VOC 2007 and 2012.
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
    layout = find_layout(tree)
    chosen, notes = choose_splits(layout, splits, known is None, on_bad)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(hold_out, bad_boxes(on_bad, max_bad), image_size, channels, memory, mean, std)
    found = {split: read_split(tree, layout, name, one_based) for split, name in chosen.items()}
    return assemble_boxes(found, clip_boxes, settings, known, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)
