"""What augmentations ask of the data and of their settings."""

from __future__ import annotations

from collections.abc import Sequence

from dlrun.contracts import DataSpec
from dlrun.errors import DlrunError


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
