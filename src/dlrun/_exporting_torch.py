"""A graph as torch's own .pt2 file.

Such a file is a pickle container, so dlrun reads only the one it has just written (DESIGN: no pickle is read).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun.errors import DlrunError
from dlrun.exporting import Traced, quietly

FILE = "model.pt2"


def write(traced: Traced, folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Write model.pt2, without the rows of data it was traced with. Returns {}.

    Raises: DlrunError for a model that is an ONNX file.
    """
    if traced.program is None:
        raise DlrunError("export: this run's model is a finished ONNX graph, which torch has none of", "--format onnx")
    traced.program._example_inputs = None  # else the file would hold them
    with quietly():
        torch.export.save(traced.program, folder / FILE)
    return {}


def runner(folder: Path) -> Callable[[dict[str, Tensor]], Sequence[Tensor]]:
    """What the file says: inputs by name to outputs in order."""
    with quietly():
        module: Any = torch.export.load(folder / FILE).module()
    return lambda given: module(**given)
