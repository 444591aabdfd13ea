"""A data set of the Hugging Face hub, by its name."""

from __future__ import annotations

from typing import Literal

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._assemble import Settings, spec_of
from dlrun.data._bad import BadRows
from dlrun.data._columns import Wanted
from dlrun.data._hub import hub_sources
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut
from dlrun.data._targets import assemble


def build(
    tools: Tools,
    *,
    path: str = "",
    config: str | None = None,
    revision: str | None = None,
    target: str | list | None = None,
    target_kind: Literal["auto", "class", "number"] = "auto",
    image: str | None = None,
    columns: list | None = None,
    splits: dict | None = None,
    image_size: int | list | None = None,
    crop: list | None = None,
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
    """Rows of a hub data set; code that comes with a data set is never run.

    Settings:
        path: ORG/NAME on the hub.
        config: which of the data set's configurations; needed where it has several.
        revision: a commit, tag or branch of the data set; its newest unless set.
        target: the label's column, or a list of columns of numbers to predict; guessed from a declared class label or
            a name such as label, target, class.
        target_kind: class or number; auto takes a single column for a number if it has fractions.
        image: the picture's column; guessed.
        columns: the columns of numbers to learn from, where there is no picture; all but the target unless set.
        splits: {train: NAME, valid: NAME, test: NAME}, each the name of a split on the hub; guessed.
        image_size: pixels that every picture is scaled to, one number or [height, width]; needed if they differ.
        crop: [top, left, bottom, right], the part of each picture to keep before it is scaled, in shares of its sides.
        channels: 1 grey, 3 colour; guessed from a sample of the pictures.
        valid_fraction: share of the training rows held out if no valid split is given, in [0, 1).
        test_fraction: the same for the test split.
        valid_size: rows held out for valid, instead of the fraction.
        test_size: rows held out for test, instead of the fraction.
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        blocks: cut the training rows, in their order, into this many equal blocks to hold out (for rows in time).
        valid_blocks: numbers of the blocks held out for valid, counted from 0.
        test_blocks: the same for test.
        on_bad: raise at a row that cannot be read, or skip it.
        max_bad: rows that may be skipped before it is an error; a stream counts in each worker process.
        memory: auto holds decoded rows in memory if they take at most a quarter of what is free, else streams them.
        mean: of each channel (pixels as 0..1) or feature, for normalising; measured over the training rows.
        std: as mean.
    """
    known = spec_of(tools)
    sources, notes = hub_sources(path, config, revision, splits, needs_train=known is None)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(
        seed, valid_fraction, test_fraction, valid_size, test_size, train_size, blocks, valid_blocks, test_blocks
    )
    settings = Settings(hold_out, BadRows(on_bad, max_bad), image_size, channels, memory, mean, std, crop)
    wanted = Wanted(target, target_kind, image, columns)
    return assemble(sources, wanted, settings, known, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on such data."""
    return make_inputs(spec)
