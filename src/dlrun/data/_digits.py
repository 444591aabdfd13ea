"""The handwritten digits of scikit-learn, read from the file that comes with it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dlrun.errors import DlrunError, Exit


def read_digits() -> tuple[np.ndarray, np.ndarray]:
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
