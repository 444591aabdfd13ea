"""Made pictures of handwritten digits strewn over a textured ground, with their boxes or a mask: no download."""

# N pictures, K digits of the fullest, H and W pixels of a picture

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._digits import read_digits
from dlrun.data._images import height_width
from dlrun.data._inputs import make_inputs
from dlrun.data._made import made_dataset
from dlrun.data._splits import stratified
from dlrun.errors import DlrunError
from dlrun.randomness import key

_SMALLEST, _LARGEST = 14, 36  # pixels of a digit's longer side
_TRIES = 30  # places tried for a digit before it is left out


def build(
    tools: Tools,
    *,
    target: Literal["boxes", "mask"] = "boxes",
    num_train: int = 600,
    num_valid: int = 100,
    num_test: int = 100,
    image_size: int | list = 96,
    channels: int = 3,
    most_digits: int = 5,
    scene_seed: int = 0,
) -> Dataset:
    """Pictures with one to a few digits each, which do not overlap. Every split has digits of its own writing.

    Settings:
        target: boxes (classes 0 to 9) or mask (a class for each pixel: the ground, or the digit on it).
        num_train: training pictures.
        num_valid: pictures to choose by.
        num_test: pictures to score on.
        image_size: pixels of a picture, one number or [height, width], at least 40 each.
        channels: 1 grey, 3 colour.
        most_digits: digits of a picture at most.
        scene_seed: chooses digits, places and colours; the same in every run unless set.
    """
    size = _size(image_size)
    if channels not in (1, 3):
        raise DlrunError(f"data.channels: {channels} is neither 1 (grey) nor 3 (colour)")
    if most_digits < 1:
        raise DlrunError(f"data.most_digits: {most_digits} is not above 0")
    counts = {"train": num_train, "valid": num_valid, "test": num_test}
    for name, count in counts.items():
        if count < (name == "train"):
            raise DlrunError(f"data.num_{name}: {count} is not a number of pictures")
    rng = np.random.default_rng(key("scenes", scene_seed) & ((1 << 63) - 1))
    scenes = _scenes(counts, _ground(sum(counts.values()), channels, *size, rng), most_digits, rng)
    ends = np.cumsum([0, *counts.values()])
    parts = {name: np.arange(ends[at], ends[at + 1]) for at, name in enumerate(counts) if counts[name]}
    sizes = {"channels": channels, "height": size[0], "width": size[1]}
    fields = {"image": scenes.image, "size": np.tile(np.array(size), (len(scenes.image), 1))}
    if target == "mask":
        fields["mask"] = scenes.mask
        sizes |= {"pixel_classes": 11, "mask_height": size[0], "mask_width": size[1]}
    else:
        no_crowd = np.zeros(scenes.labels.shape, dtype=bool)
        fields |= {"boxes": scenes.boxes, "box_labels": scenes.labels, "box_crowd": no_crowd}
        sizes |= {"box_classes": 10, "boxes": most_digits}
    labels = (*(("ground",) if target == "mask" else ()), *map(str, range(10)))
    other = {"box_classes": "data.target=boxes"} if target == "mask" else {"pixel_classes": "data.target=mask"}
    assets = {"kind": "image", "image_column": "image", "image_size": image_size, "given_by": other}
    draft = DataSpec(("image",), target, sizes, {"image": (channels, *size)}, labels, assets)
    return made_dataset(tools, fields, parts, draft, [])


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on scenes."""
    return make_inputs(spec)


def _size(image_size: int | list) -> tuple[int, int]:
    size = height_width(image_size, "data.image_size")
    assert size is not None
    if min(size) < 40:
        raise DlrunError(f"data.image_size: {image_size} is under 40 pixels, too small for a scene")
    return size


class _Scenes(NamedTuple):
    """image uint8 [N, C, H, W]; mask uint8 [N, H, W]: 0 the ground, else 1 + digit; boxes [N, K, 4]; labels [N, K]."""

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def _ground(count: int, channels: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [N, C, H, W] in about 60..200: a colour that drifts over the picture, stripes, and grain."""
    corners = rng.uniform(70, 190, (count, channels, 2, 2)).astype(np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(0, 1, width, dtype=np.float32)
    ground = (
        corners[..., 0, 0, None, None] * (1 - down) * (1 - across)
        + corners[..., 0, 1, None, None] * (1 - down) * across
        + corners[..., 1, 0, None, None] * down * (1 - across)
        + corners[..., 1, 1, None, None] * down * across
    )
    slopes = rng.uniform(-12, 12, (2, count, 1, 1, 1)).astype(np.float32)
    ground += 10 * np.sin(2 * np.pi * (slopes[0] * down + slopes[1] * across))
    return ground + rng.normal(0, 8, (count, 1, height, width)).astype(np.float32)


def _scenes(counts: dict[str, int], ground: np.ndarray, most: int, rng: np.random.Generator) -> _Scenes:
    """Digits put on the ground, at one place after another."""
    pixels, labels = read_digits()
    sizes = {"test": len(labels) // 5, "valid": len(labels) // 5}
    writing = stratified(labels, sizes, seed=0)
    num_pictures, _, height, width = ground.shape
    mask = np.zeros((num_pictures, height, width), dtype=np.uint8)
    boxes = np.zeros((num_pictures, most, 4), dtype=np.float32)
    classes = np.full((num_pictures, most), -1, dtype=np.int64)
    splits = [name for name, count in counts.items() for _ in range(count)]
    for picture, split in enumerate(splits):
        found = 0
        for digit in rng.choice(writing[split], rng.integers(1, most + 1)).tolist():
            ink = _scaled(pixels[digit, 0], int(rng.integers(_SMALLEST, _LARGEST + 1)))
            place = _place(boxes[picture, :found], ink.shape, (height, width), rng)
            if place is None:
                continue
            top, left = place
            here = (picture, slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1]))
            _paint(ground[picture][:, here[1], here[2]], ink, rng)
            mask[here][ink > 0.4] = 1 + labels[digit]
            boxes[picture, found] = left, top, left + ink.shape[1], top + ink.shape[0]
            classes[picture, found] = labels[digit]
            found += 1
    return _Scenes(np.clip(ground, 0, 255).astype(np.uint8), mask, boxes, classes)


def _scaled(pixels: np.ndarray, longer: int) -> np.ndarray:
    """float32 in 0..1: the digit without its margins, its longer side this many pixels."""
    from PIL import Image

    inked = pixels > 64
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    tight = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = longer / max(tight.shape)
    height, width = (max(3, round(side * scale)) for side in tight.shape)
    return np.asarray(Image.fromarray(tight).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32) / 255


def _place(
    taken: np.ndarray, shape: tuple[int, ...], room: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Top and left of a free place, or None if there seems to be none. taken: boxes [k, 4]."""
    for top, left in rng.integers(0, (room[0] - shape[0] + 1, room[1] - shape[1] + 1), (_TRIES, 2)).tolist():
        apart = (
            (left >= taken[:, 2]) | (left + shape[1] <= taken[:, 0]) | (top >= taken[:, 3])
            | (top + shape[0] <= taken[:, 1])
        )  # fmt: skip
        if apart.all():
            return top, left
    return None


def _paint(ground: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> None:
    """Lay ink of one colour, clearly lighter or darker than the ground, onto a part of a picture [C, h, w]."""
    light = ground.mean() < 130 if rng.random() < 0.8 else rng.random() < 0.5
    colour = rng.uniform(205, 255, len(ground)) if light else rng.uniform(0, 50, len(ground))
    ground += (colour[:, None, None].astype(np.float32) - ground) * ink
