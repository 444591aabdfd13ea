"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels, 10 classes, no download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._held import MemorySplit
from dlrun.data._inputs import make_inputs
from dlrun.data._splits import HoldOut, divide
from dlrun.data._statistics import measured
from dlrun.errors import DlrunError, Exit


def build(
    tools: Tools,
    *,
    valid_fraction: float = 0.15,
    test_fraction: float = 0.15,
    train_size: int | None = None,
    split_seed: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """The whole set in memory, split by label in the same proportions.

    Settings:
        valid_fraction: share of the rows held out to choose by, in [0, 1).
        test_fraction: share of the rows held out to score on, in [0, 1).
        train_size: use this many of the training rows that remain, stratified by label.
        split_seed: chooses the rows held out; the run's seed unless set.
        image_size: height and width in pixels to scale the images to; 8, as they are, unless set.
    """
    image, labels_N = _read()
    if image_size is not None:
        image = _scaled(image, image_size)
    seed = tools.seed if split_seed is None else split_seed
    hold_out = HoldOut(seed, valid_fraction, test_fraction, train_size=train_size)
    parts, notes = divide(labels_N, {"train"}, hold_out)
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


def _read() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 1, 8, 8] in 0..255 and int64 [1797]: straight from the file, as importing sklearn takes seconds."""
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None  # a dependency of dlrun
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except (OSError, ValueError) as error:
        hint = "install scikit-learn again: pip install --force-reinstall scikit-learn"
        raise DlrunError(f"the digits of scikit-learn cannot be read: {file}", hint, Exit.DATA) from error
    pixels = (table[:, :-1] * 255 + 8) // 16  # counts of 0..16
    return pixels.astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1].copy()


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    """The images at size x size pixels, scaled as any picture is."""
    from dlrun.data._images import Decoder

    if size < 1:
        raise DlrunError(f"data.image_size: {size} is not a number of pixels above 0")
    decoder = Decoder(1, size, size, resize=True)
    return np.stack([decoder.decode(picture) for picture in image[:, 0]])


def _spec(train: MemorySplit, image_size: int | None, seed: int) -> DataSpec:
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
