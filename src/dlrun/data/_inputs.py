"""The input pipeline of a run, rebuilt from its DataSpec alone: new rows to tensors, stored tensors to model inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dlrun.contracts import Batch, DataSpec, Inputs, Row
from dlrun.data._images import WHOLE, BadPicture, Decoder, strictly
from dlrun.errors import DlrunError, Exit, did_you_mean


def make_inputs(spec: DataSpec) -> Inputs:
    """The pipeline for pictures or for a table of numbers."""
    return ImageInputs(spec) if spec.assets["kind"] == "image" else TableInputs(spec)


class Normalise:
    """(x / scale - mean) / std as one product and one sum, its constants kept on the device they were needed on."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float, trailing: int) -> None:
        shape = (1, -1, *[1] * trailing)
        mean_1C, std_1C = (torch.tensor(list(values), dtype=torch.float64).reshape(shape) for values in (mean, std))
        self._factor = (1 / (scale * std_1C)).float()
        self._offset = (-mean_1C / std_1C).float()
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, values: Tensor) -> Tensor:
        if values.device not in self._on:
            self._on[values.device] = self._factor.to(values.device), self._offset.to(values.device)
        factor, offset = self._on[values.device]
        return values.to(torch.float32, copy=True).mul_(factor).add_(offset)  # in place: a third of the time


class ImageInputs:
    """Pictures: anything `open_picture` takes, scaled to the size the model was made for."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.column = spec.assets["image_column"]
        channels, height, width = spec.shapes["image"]
        crop = tuple(spec.assets.get("crop", WHOLE))
        self.decoder = Decoder(channels, height, width, resize=True, crop=crop)
        self.sized = spec.target in ("mask", "boxes")  # what is said of places, a person wants in their own picture
        self._normalise = Normalise(spec.assets["mean"], spec.assets["std"], 255.0, trailing=2)

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "image" uint8 [B, C, H, W], and "size" int64 [B, 2], the pictures' own, where places are predicted.

        Raises DlrunError naming the picture that cannot be read.
        """
        image = np.empty((len(rows), *self.decoder.shape), dtype=np.uint8)
        size = np.empty((len(rows), 2), dtype=np.int64)
        with strictly():
            for index, row in enumerate(rows):
                given = self._picture(row, index)
                try:
                    decoded = self.decoder.decode(given)
                except BadPicture as error:
                    raise DlrunError(f"{_called(given, index)}: {error}", code=Exit.DATA) from error
                image[index] = decoded.pixels
                size[index] = decoded.height, decoded.width
        fields = {"id": torch.arange(len(rows)), "image": torch.from_numpy(image)}
        return fields | ({"size": torch.from_numpy(size)} if self.sized else {})

    def _picture(self, row: Row, index: int) -> object:
        if not isinstance(row, Mapping) or (row and set(row) <= {"bytes", "path"}):
            return row
        for name in (self.column, "image"):
            if name in row:
                return row[name]
        raise DlrunError(f"row {index} has no '{self.column}'; it has {', '.join(map(str, row)) or 'nothing'}")

    def prepare(self, batch: Batch) -> Batch:
        """Pixels 0..255, uint8 or float, to normalised float32."""
        return batch | {"image": self._normalise(batch["image"])}


class TableInputs:
    """Numbers by the names of their columns."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.columns: list[str] = list(spec.assets["columns"])
        self._normalise = Normalise(spec.assets["mean"], spec.assets["std"], 1.0, trailing=0)

    def encode(self, rows: Sequence[Row]) -> Batch:
        """ "features" float32 [B, F]. Raises DlrunError naming the row and the column that is no number."""
        values = [[self._number(row, name, index) for name in self.columns] for index, row in enumerate(rows)]
        features = torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(self.columns))
        return {"id": torch.arange(len(rows)), "features": features}

    def _number(self, row: Row, name: str, index: int) -> float:
        if name not in row:
            raise DlrunError(f"row {index} has no '{name}'", did_you_mean(name, map(str, row)))
        try:
            number = float(row[name])
        except (TypeError, ValueError):
            number = float("nan")
        if not abs(number) <= torch.finfo(torch.float32).max:
            raise DlrunError(f"row {index}: '{name}' is {row[name]!r}; a finite number is needed", code=Exit.DATA)
        return number

    def prepare(self, batch: Batch) -> Batch:
        """Numbers to zero mean and unit deviation, as over the training rows."""
        return batch | {"features": self._normalise(batch["features"])}


def _called(given: object, index: int) -> str:
    """What an error calls a picture: its path, or its place among the rows."""
    if isinstance(given, Mapping) and given.get("path"):
        return str(given["path"])
    return str(given) if isinstance(given, str) or hasattr(given, "__fspath__") else f"row {index}"
