"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels, 10 classes, no download."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._digits import read_digits
from dlrun.data._held import MemorySplit
from dlrun.data._images import Decoder, height_width
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut, divide
from dlrun.data._statistics import measured


def build(
    tools: Tools,
    *,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    train_size: int | None = None,
    split_seed: int | None = None,
    image_size: int | list | None = None,
) -> Dataset:
    """The whole set in memory, split by label in the same proportions.

    Settings:
        valid_fraction: share of the rows held out to choose by, in [0, 1).
        test_fraction: share of the rows held out to score on, in [0, 1).
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        image_size: pixels to scale the images to, one number or [height, width]; 8, as they are, unless set.
    """
    image, labels_N = read_digits()
    if (size := height_width(image_size, "data.image_size")) is not None:
        decoder = Decoder(1, *size, resize=True)
        image = np.stack([decoder.decode(picture).pixels for picture in image[:, 0]])
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(seed, valid_fraction, test_fraction, train_size=train_size)
    parts, notes = divide(len(labels_N), labels_N, {"train"}, hold_out)
    fields = {"id": np.arange(len(image)), "image": image, "label": labels_N}
    held = {name: torch.from_numpy(array) for name, array in fields.items()}
    ordered = [name for name in ("train", "valid", "test") if name in parts]
    splits = {name: MemorySplit(held, torch.from_numpy(parts[name])) for name in ordered}
    spec = getattr(tools, "spec", None) or _spec(splits["train"], image_size, seed)
    digest = hashlib.blake2b(image.tobytes() + labels_N.tobytes(), digest_size=16)
    for name in ordered:
        digest.update(name.encode() + parts[name].tobytes())
    return Dataset(spec, dict(splits), make_inputs(spec), tuple(notes), digest.hexdigest())


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on the digits."""
    return make_inputs(spec)


def _spec(train: MemorySplit, image_size: int | list | None, seed: int) -> DataSpec:
    moments, _ = measured(train, "image", seed)
    channels, height, width = train.fields["image"].shape[1:]
    assets = {"kind": "image", "mean": moments.mean, "std": moments.std, "image_column": "image",
              "target_column": "label", "image_size": image_size}  # fmt: skip
    return DataSpec(
        ("image",),
        "label",
        {"classes": 10, "channels": channels, "height": height, "width": width},
        {"image": (channels, height, width)},
        tuple(str(digit) for digit in range(10)),
        assets,
    )
