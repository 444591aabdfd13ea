"""What augmentations ask of the data and of their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError, did_you_mean


def picture_shape(spec: DataSpec, name: str) -> tuple[int, int, int]:
    """(channels, height, width) of the data's pictures. Raises DlrunError if it has none."""
    if "image" not in spec.shapes:
        raise DlrunError(
            f"data.augment.{name} changes pictures; this data has {', '.join(spec.inputs)}",
            "leave it out of data.augment",
        )
    channels, height, width = spec.shapes["image"]
    return channels, height, width


def free_of_places(spec: DataSpec, name: str) -> None:
    """Raises DlrunError where the truth lies in the picture (masks, boxes), for an augmentation that cannot move it."""
    truth = {"mask": "masks", "boxes": "boxes"}.get(spec.target)
    if truth is not None:
        raise DlrunError(
            f"data.augment.{name} would leave the {truth} of this data untrue",
            "use flip, random_crop, random_affine, color_jitter or random_erasing",
        )


def within(name: str, setting: str, value: float, least: float, most: float) -> None:
    """Raises DlrunError unless least <= value <= most."""
    if not least <= value <= most:
        raise DlrunError(f"data.augment.{name}.{setting}: {value} is not between {least:g} and {most:g}")


def ordered_pair(name: str, setting: str, values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """Two numbers, least <= low <= high <= most. Raises DlrunError."""
    is_pair = len(values) == 2 and all(isinstance(value, (int, float)) for value in values)
    if not is_pair or not least <= values[0] <= values[1] <= most:
        raise DlrunError(
            f"data.augment.{name}.{setting}: {list(values)} is not a low and a high number in {least:g}..{most:g}"
        )
    return float(values[0]), float(values[1])


def of_targets(spec: DataSpec, values: Mapping[str, float], setting: str) -> Tensor:
    """What is said of each target by its name, 0 where nothing is: float32 [T]. Raises DlrunError for other names."""
    if "targets" not in spec.sizes:
        raise DlrunError(
            f"data.augment.{setting}: {list(values)} are no targets; this data predicts '{spec.target}'",
            f"leave it out of data.augment.{setting.partition('.')[0]}",
        )
    names = spec.labels or tuple(str(index) for index in range(spec.sizes["targets"]))
    for name, value in values.items():
        if name not in names:
            raise DlrunError(f"data.augment.{setting}: no target '{name}'", did_you_mean(str(name), names))
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DlrunError(f"data.augment.{setting}.{name}: {value!r} is not a number")
    return torch.tensor([float(values.get(name, 0.0)) for name in names])
