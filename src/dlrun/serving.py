"""A run folder as an MLflow model: the MLmodel file, and what MLflow's pyfunc loads and serves.

    mlflow.pyfunc.load_model("runs:/<run id>/")                      (the slash at the end is MLflow's rule)
    mlflow models serve -m runs:/<run id>/ --env-manager local

Nothing is copied or pickled: MLflow imports this module, which loads the run's predictor from the folder.
A request is a table with one column for each input. A picture is base64 text of an image file, or nested
lists [H][W] or [H][W][C] of 0..255; no text is taken for a path. Answers are the task's rows.
"""

from __future__ import annotations

import base64
import binascii
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlrun import __version__
from dlrun.contracts import DataSpec, Predictor, Row
from dlrun.errors import DlrunError, did_you_mean
from dlrun.runs import write_atomically

_MODULE = "dlrun.serving"


def write_mlmodel(artifacts: Path, *, run_id: str) -> Path:
    """Write the run folder's MLmodel file from its spec.json; returns its path.

    Written by hand: mlflow.*.log_model would copy the weights, and takes up to a minute.
    Raises: DlrunError with code DATA if spec.json cannot be read, DISK if the file cannot be written.
    """
    spec = DataSpec.load(artifacts)
    inputs = [{"type": "any", "name": name, "required": True} for name in columns(spec)]
    model = {
        "flavors": {"python_function": {"loader_module": _MODULE, "python_version": platform.python_version()}},
        "metadata": {"dlrun": __version__},
        "mlflow_version": version("mlflow"),
        "model_uuid": run_id,
        "run_id": run_id,
        "signature": {"inputs": json.dumps(inputs), "outputs": None, "params": None},
        "utc_time_created": datetime.now(UTC).replace(tzinfo=None).isoformat(sep=" "),
    }
    path = artifacts / "MLmodel"
    write_atomically(path, json.dumps(model, indent=2) + "\n")  # JSON is YAML
    return path


def columns(spec: DataSpec) -> list[str]:
    """The columns of a request."""
    if spec.assets.get("kind") in ("table", "text", "tabular", "ratings"):
        return [str(name) for name in spec.assets["columns"]]
    if (kind := spec.assets.get("kind")) in ("image", "audio"):
        return [str(spec.assets.get(f"{kind}_column", kind))]
    return list(spec.inputs)


def _load_pyfunc(path: str) -> ServedModel:
    """Called by MLflow with the folder of the MLmodel file."""
    from dlrun import predictor

    return ServedModel(predictor.load(Path(path)))


class ServedModel:
    """What mlflow.pyfunc holds."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[Row]:
        """The task's rows for a DataFrame, a list of dicts or a dict of columns; ids are positions.

        Raises: MlflowException with code BAD_REQUEST, in one line, for input that does not fit.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import BAD_REQUEST

        try:
            outputs = self._predictor.predict_rows(safe_rows(self._predictor.spec, model_input))
            return self._predictor.task.rows(outputs)
        except DlrunError as error:
            raise MlflowException(str(error), BAD_REQUEST) from error


# ---------------------------------------------------------------- requests


def safe_rows(spec: DataSpec, model_input: Any) -> list[Row]:
    """A request as rows for the run's input pipeline, holding the known columns and no path.

    Raises: DlrunError naming the row and the column that does not fit.
    """
    names = columns(spec)
    read = {"table": _number, "text": _text, "tabular": _scalar, "ratings": _scalar}.get(
        spec.assets.get("kind", ""), _content
    )
    rows = []
    for index, given in enumerate(_records(model_input, names)):
        missing = [name for name in names if name not in given]
        if missing:
            raise DlrunError(f"row {index} has no '{missing[0]}'", did_you_mean(missing[0], map(str, given)))
        where = f"row {index}, '{{}}'"
        rows.append({name: read(given[name], where.format(name)) for name in names})
    return rows


def _records(model_input: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """One mapping a row of whatever form MLflow hands over."""
    if hasattr(model_input, "to_dict") and hasattr(model_input, "columns"):  # a DataFrame
        return model_input.to_dict("records")
    if isinstance(model_input, Mapping):
        lengths = {len(column) for column in model_input.values()}
        if len(lengths) > 1:
            raise DlrunError(f"the columns have different lengths: {', '.join(map(str, sorted(lengths)))}")
        return [
            {name: column[index] for name, column in model_input.items()} for index in range(max(lengths, default=0))
        ]
    if len(names) == 1 and not any(isinstance(row, Mapping) for row in model_input):
        return [{names[0]: row} for row in model_input]
    if not all(isinstance(row, Mapping) for row in model_input):
        raise DlrunError(f"a request is a table with the columns {', '.join(names)}")
    return list(model_input)


def _content(value: Any, where: str) -> Any:
    """The bytes of an encoded file, or an array of numbers."""
    import numpy as np

    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise DlrunError(f"{where}: the text is not base64", "send the bytes of a file as base64 text") from error
    try:
        array = np.array(value.tolist() if isinstance(value, np.ndarray) else value)
    except (ValueError, TypeError) as error:
        raise DlrunError(f"{where}: lists of unequal lengths; expected an array of numbers") from error
    if array.dtype.kind not in "buif":
        raise DlrunError(f"{where}: expected base64 text or an array of numbers, not {type(value).__name__}")
    return array


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DlrunError(f"{where}: {value!r} is no text")
    return value


def _scalar(value: Any, where: str) -> Any:
    """A number, a word, a truth value, or None."""
    value = value.item() if hasattr(value, "item") else value
    if value is not None and not isinstance(value, bool | int | float | str):
        raise DlrunError(f"{where}: {value!r} is neither a number nor a word")
    return value


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DlrunError(f"{where}: {value!r} is not a number") from error
