"""Mean and standard deviation of the training rows, for normalising."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dlrun.contracts import Split
from dlrun.errors import DlrunError
from dlrun.randomness import permutation

_AT_ONCE = 1024  # rows at most, and of large pictures fewer: small blocks stay in the cache
_PIXELS_AT_ONCE = 1 << 22
_SAMPLE = 2_000  # rows read for it where rows are streamed


class Moments(NamedTuple):
    """A mean and a standard deviation for each channel or feature; a constant one has a deviation of 1."""

    mean: list[float]
    std: list[float]


def given(mean: list | None, std: list | None, size: int) -> Moments | None:
    """What the user set, or None. Raises DlrunError if it cannot be used."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DlrunError("data.mean and data.std go together; only one of them is set")
    if len(mean) != size or len(std) != size:
        raise DlrunError(f"data.mean and data.std have {len(mean)} and {len(std)} numbers; the data needs {size} each")
    if not all(isinstance(value, (int, float)) for value in (*mean, *std)) or min(std) <= 0:
        raise DlrunError(f"data.mean={mean} and data.std={std}: numbers are needed, and each std above 0")
    return Moments([float(value) for value in mean], [float(value) for value in std])


def measured(train: Split, field: str, seed: int) -> tuple[Moments, list[str]]:
    """The moments of a field over the training rows, or over a sample of them where they are streamed.

    Pixels count as 0..1: their sums are exact integers, so the result does not depend on the order.
    """
    rows = torch.arange(len(train))
    notes = []
    if not train.in_memory and len(train) > _SAMPLE:
        rows = permutation(len(train), seed, "statistics")[:_SAMPLE].sort().values
        notes = [f"mean and std are those of {_SAMPLE:,} training rows; data.mean and data.std set them"]
    at_once, shift = _AT_ONCE, torch.zeros(())
    if field == "image":
        at_once = min(_AT_ONCE, max(1, _PIXELS_AT_ONCE // train.gather(rows[:1])[field].shape[1:].numel()))
    else:
        shift = train.gather(rows[:_AT_ONCE])[field].double().mean(0)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for block in rows.split(at_once):
        values = train.gather(block)[field]
        number, sums, sums_of_squares = _pixel_sums(values) if field == "image" else _sums(values, shift)
        count, total, squares = count + number, total + sums, squares + sums_of_squares
    return _moments(count, total, squares, shift, 255 if field == "image" else 1), notes


def _moments(count: int, total: Tensor, squares: Tensor, shift: Tensor, scale: int) -> Moments:
    """Moments of (shift + values) / scale from the sums of the values and of their squares."""
    mean = total.double() / max(count, 1)
    deviation = (squares.double() / max(count, 1) - mean**2).clamp(min=0).sqrt()
    mean = mean + shift
    deviation[deviation <= 1e-7 * mean.abs()] = scale  # constant, as far as float32 can tell
    return Moments((mean / scale).tolist(), (deviation / scale).tolist())


def _pixel_sums(values_BCHW: Tensor) -> tuple[int, Tensor, Tensor]:
    """Pixels a channel, and the int64 sums of them and of their squares."""
    flat = values_BCHW.transpose(0, 1).flatten(1).to(torch.int32)
    return flat.shape[1], flat.sum(1, dtype=torch.int64), (flat * flat).sum(1, dtype=torch.int64)


def _sums(values_BF: Tensor, shift: Tensor) -> tuple[int, Tensor, Tensor]:
    """Rows, and the sums of (values - shift) and of their squares: a large mean would swallow a small deviation."""
    values = values_BF.double() - shift
    return len(values), values.sum(0), (values * values).sum(0)
