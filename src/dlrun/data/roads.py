"""Made pictures of a road ahead, in the order of a drive, with the steering or a mask: no download."""

# N pictures, H and W pixels

from __future__ import annotations

from typing import Literal

import numpy as np

from dlrun.contracts import Dataset, DataSpec, Inputs, Tools
from dlrun.data._images import height_width
from dlrun.data._inputs import make_inputs
from dlrun.data._made import made_dataset
from dlrun.data._splits import HoldOut, divide
from dlrun.errors import DlrunError
from dlrun.randomness import key

_CLASSES = ("sky", "grass", "road", "mark")
_COLOURS = np.array([[150, 185, 225], [85, 125, 65], [105, 105, 110], [225, 225, 215]], dtype=np.float32)
_HORIZON = 0.4  # of the height, from the top
_INTO_THE_BEND, _BACK_TO_THE_MIDDLE = 0.6, 0.4  # they add up to 1, so that steering stays in -1..1


def build(
    tools: Tools,
    *,
    target: Literal["steering", "mask"] = "steering",
    num_pictures: int = 1000,
    image_size: int | tuple = (48, 96),
    blocks: int = 10,
    valid_blocks: tuple = (6,),
    test_blocks: tuple = (4, 8),
    drive_seed: int = 0,
) -> Dataset:
    """Sky, grass, a road and its marks, seen from a car. The road bends and the car drifts slowly from row to row.

    steering = 0.6 x curvature - 0.4 x offset, where both are in -1..1 and positive to the right: the car steers
    into the bend, and back to the middle of the road.

    Settings:
        target: steering (a number in -1..1, positive to the right) or mask (sky, grass, road, mark for each pixel).
        num_pictures: pictures of the drive, of all splits together.
        image_size: pixels of a picture, one number or [height, width], at least 16 each.
        blocks: equal stretches of the drive.
        valid_blocks: numbers of the stretches held out to choose by, counted from 0.
        test_blocks: the same to score on.
        drive_seed: chooses bends, drift, light and grain; the same in every run unless set.
    """
    size = height_width(image_size, "data.image_size")
    assert size is not None
    if min(size) < 16:
        raise DlrunError(f"data.image_size: {image_size} is under 16 pixels, too small for a road")
    if num_pictures < 1:
        raise DlrunError(f"data.num_pictures: {num_pictures} is not above 0")
    hold_out = HoldOut(0, blocks=blocks, valid_blocks=valid_blocks, test_blocks=test_blocks)
    parts, notes = divide(num_pictures, None, {"train"}, hold_out)
    rng = np.random.default_rng(key("roads", drive_seed) & ((1 << 63) - 1))
    curvature_N, offset_N = _slow(num_pictures, (60, 240), rng), _slow(num_pictures, (25, 90), rng)
    mask = _seen(curvature_N, offset_N, *size, rng)
    fields = {"image": _coloured(mask, rng)}
    sizes = {"channels": 3, "height": size[0], "width": size[1]}
    if target == "mask":
        fields |= {"mask": mask, "size": np.tile(np.array(size), (num_pictures, 1))}
        sizes |= {"pixel_classes": len(_CLASSES), "mask_height": size[0], "mask_width": size[1]}
    else:
        steering_N = _INTO_THE_BEND * curvature_N - _BACK_TO_THE_MIDDLE * offset_N
        fields["target"] = steering_N[:, None].astype(np.float32)
        sizes["targets"] = 1
    field, labels = ("mask", _CLASSES) if target == "mask" else ("target", ("steering",))
    other = {"targets": "data.target=steering"} if target == "mask" else {"pixel_classes": "data.target=mask"}
    assets = {"kind": "image", "image_column": "image", "image_size": list(size), "given_by": other}
    draft = DataSpec(("image",), field, sizes, {"image": (3, *size)}, labels, assets)
    return made_dataset(tools, fields, parts, draft, notes)


def inputs(spec: DataSpec) -> Inputs:
    """The input pipeline of a run that was trained on roads."""
    return make_inputs(spec)


def _slow(count: int, periods: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """[N] in -1..1 that changes slowly: four waves, whose periods in rows lie between these two."""
    frequencies = 1 / rng.uniform(*periods, 4)
    waves = np.sin(2 * np.pi * (np.arange(count)[:, None] * frequencies + rng.uniform(0, 1, 4)))
    return waves.mean(1)


def _seen(
    curvature_N: np.ndarray, offset_N: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """uint8 [N, H, W]: the class of each pixel. A bend moves the far end of the road, an offset its near end."""
    near_H = ((np.arange(height) + 0.5) / height - _HORIZON) / (1 - _HORIZON)  # 0 at the horizon, 1 at the bottom
    below_H = np.clip(near_H, 0.02, 1)
    bend, drift = curvature_N[:, None] * (1 - below_H) ** 2, offset_N[:, None] * below_H
    middle_NH1 = (0.5 + 0.45 * bend - 0.35 * drift)[:, :, None]
    across_NHW = (np.arange(width) + 0.5) / width - middle_NH1
    of_half = np.abs(across_NHW) / (0.03 + 0.42 * below_H)[:, None]  # 1 at the edge of the road
    travelled_N = rng.uniform(0, 1, len(curvature_N))  # the dashes' place in a picture says nothing of its neighbours'
    is_dash_NH1 = ((0.9 / (below_H + 0.12) + travelled_N[:, None]) % 1 < 0.5)[:, :, None]
    mask = np.where(of_half < 1, 2, 1).astype(np.uint8)
    mask[((of_half > 0.86) & (of_half < 0.97)) | ((of_half < 0.05) & is_dash_NH1)] = 3
    mask[:, near_H < 0] = 0
    return mask


def _coloured(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [N, 3, H, W]: the classes' colours under a light that changes slowly, with patches and grain."""
    count, height, width = mask.shape
    image = _COLOURS[mask].transpose(0, 3, 1, 2)
    light_N = 1 + 0.25 * _slow(count, (40, 160), rng)
    patches = rng.normal(0, 12, (count, 1, height // 6 + 1, width // 6 + 1)).astype(np.float32)
    patches = patches.repeat(6, axis=2).repeat(6, axis=3)[:, :, :height, :width]
    grain = rng.normal(0, 6, (count, 1, height, width)).astype(np.float32)
    return np.clip(image * light_N[:, None, None, None] + patches + grain, 0, 255).astype(np.uint8)
