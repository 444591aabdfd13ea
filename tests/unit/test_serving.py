"""A run folder as an MLflow model: what a request may hold, and that no request reaches the disk."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from dlrun import serving, tracking
from dlrun._tracking_database import sqlite_uri
from dlrun.contracts import DataSpec, Outputs
from dlrun.errors import DlrunError
from dlrun.serving import ServedModel, safe_rows, write_mlmodel
from dlrun.tasks import classification

IMAGE = DataSpec(
    ("image",),
    "label",
    {"classes": 2, "channels": 1, "height": 2, "width": 2},
    {"image": (1, 2, 2)},
    ("dark", "light"),
    {"kind": "image", "image_column": "picture"},
)
TABLE = DataSpec(("features",), "y", {"classes": 2}, {"features": (2,)}, (), {"kind": "table", "columns": ["a", "b"]})


class Brightness:
    """A predictor of pixel arrays whose answer can be worked out by hand."""

    spec, task = IMAGE, classification.build(IMAGE)

    def predict_rows(self, rows) -> Outputs:
        if not rows:
            raise DlrunError("there is nothing to predict: no rows were given")
        light = torch.tensor([np.asarray(row["picture"]).mean() / 255 for row in rows])
        return Outputs(torch.arange(len(rows)), {"log_probabilities": torch.stack([1 - light, light], 1).log()})

    def predict_split(self, split: str) -> Outputs:
        raise AssertionError("not asked for")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "spec.json").write_text(json.dumps(IMAGE.to_json()))
    return tmp_path


def test_the_mlmodel_file_names_this_module_the_columns_and_nothing_pickled(run_dir):
    import yaml

    path = write_mlmodel(run_dir, run_id="0" * 32)
    model = yaml.safe_load(path.read_text())
    flavor = model["flavors"]["python_function"]
    assert set(flavor) == {"loader_module", "python_version"} and flavor["loader_module"] == "dlrun.serving"
    assert json.loads(model["signature"]["inputs"]) == [{"type": "any", "name": "picture", "required": True}]
    assert model["run_id"] == "0" * 32


@pytest.mark.filterwarnings("ignore:.*inferred as AnyType")  # MLflow's, about its own classes, when it is imported
def test_mlflow_loads_a_run_by_its_id_and_answers_with_the_tasks_rows(runs, monkeypatch):
    started = tracking.start_run(runs, uri=None, experiment="x", name="", params={}, tags={}, created_ms=1)
    folder = runs / started.id / "artifacts"
    (folder / "spec.json").write_text(json.dumps(IMAGE.to_json()))
    write_mlmodel(folder, run_id=started.id)
    monkeypatch.setattr(serving, "_load_pyfunc", lambda path: ServedModel(Brightness()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(runs / "mlflow.db"))
    import mlflow

    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    model = mlflow.pyfunc.load_model(f"runs:/{started.id}/")
    frame = pandas.DataFrame({"picture": [[[0, 51], [0, 51]], [[255, 255], [255, 204]]]})
    rows = model.predict(frame)
    assert [row["label"] for row in rows] == ["dark", "light"] and [row["id"] for row in rows] == [0, 1]
    assert rows[0]["probability"] == pytest.approx(0.9) and rows[1]["probabilities"]["light"] == pytest.approx(0.95)
    with pytest.raises(mlflow.MlflowException, match="Model is missing inputs"):
        model.predict(pandas.DataFrame({"image": [1]}))


@pytest.mark.parametrize(
    "given",
    [
        pandas.DataFrame({"picture": [b"123", b"4"]}),
        [{"picture": base64.b64encode(b"123").decode()}, {"picture": b"4"}],
        {"picture": [b"123", b"4"]},
        [b"123", b"4"],
    ],
)
def test_requests_of_every_form_become_rows_of_bytes(given):
    assert safe_rows(IMAGE, given) == [{"picture": b"123"}, {"picture": b"4"}]


def test_nested_lists_and_arrays_become_arrays():
    nested = np.empty(2, dtype=object)  # as a table column of rows comes out of pandas
    nested[:] = [np.array([1, 2]), np.array([3, 4])]
    for pixels in ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]]), nested):
        (row,) = safe_rows(IMAGE, [{"picture": pixels}])
        assert row["picture"].tolist() == [[1, 2], [3, 4]] and row["picture"].dtype.kind == "i"


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "../secret.png", "file:///etc/passwd", "http://host/x.png", "~/x.png", "a.png"],
)
def test_text_is_never_taken_for_a_path(value):
    with pytest.raises(DlrunError, match=r"row 0, 'picture': the text is not base64"):
        safe_rows(IMAGE, [{"picture": value}])


@pytest.mark.parametrize(
    "value", [{"path": "/etc/passwd"}, {"bytes": None, "path": "/x"}, None, Path("/etc/passwd"), [["a"]]]
)
def test_whatever_is_no_text_and_no_numbers_is_refused(value):
    with pytest.raises(DlrunError, match=r"row 0, 'picture': expected base64 text or an array of numbers"):
        safe_rows(IMAGE, [{"picture": value}])


def test_columns_the_model_does_not_know_never_reach_the_pipeline():
    (row,) = safe_rows(IMAGE, [{"picture": b"1", "path": "/etc/passwd", "bytes": b""}])
    assert row == {"picture": b"1"}
    with pytest.raises(DlrunError, match="row 0 has no 'picture'"):
        safe_rows(IMAGE, [{"bytes": None, "path": "/etc/passwd"}])


def test_ragged_lists_are_refused():
    with pytest.raises(DlrunError, match="lists of unequal lengths"):
        safe_rows(IMAGE, [{"picture": [[1, 2], [3]]}])
    with pytest.raises(DlrunError, match="the columns have different lengths: 1, 2"):
        safe_rows(TABLE, {"a": [1], "b": [1, 2]})


def test_a_table_takes_numbers_only():
    assert safe_rows(TABLE, pandas.DataFrame({"b": [1], "a": [2.5]})) == [{"a": 2.5, "b": 1.0}]
    assert safe_rows(TABLE, {"a": np.array([1, 2]), "b": ["3", 4]}) == [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 4.0}]
    with pytest.raises(DlrunError, match="row 0, 'b': 'x' is not a number"):
        safe_rows(TABLE, [{"a": 1, "b": "x"}])
    with pytest.raises(DlrunError, match="a request is a table with the columns a, b"):
        safe_rows(TABLE, [[1, 2]])


def test_a_request_that_does_not_fit_is_the_clients_error_in_one_line():
    from mlflow.exceptions import MlflowException

    for request in ([{"picture": "no/base64!"}], []):
        with pytest.raises(MlflowException) as caught:
            ServedModel(Brightness()).predict(request)
        assert caught.value.error_code == "BAD_REQUEST" and "Traceback" not in str(caught.value)
