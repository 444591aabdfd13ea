"""A trained run, loaded and served by MLflow itself."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from dlrun import predictor, serving
from dlrun._tracking_database import sqlite_uri
from dlrun.runs import find
from dlrun.training import checkpoint

# The warning is MLflow's, about its own classes, when it is imported.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*inferred as AnyType")]


@contextlib.contextmanager
def served(uri: str, tracking_uri: str) -> Iterator[str]:
    """The address of `mlflow models serve`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    bin_folder = os.path.dirname(sys.executable)  # MLflow starts uvicorn by its name
    environment["PATH"] = bin_folder + os.pathsep + environment["PATH"]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        address = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ping"):
                break
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(address: str, request: object) -> tuple[int, dict]:
    data = json.dumps(request).encode()
    asked = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_trained_run_is_loaded_and_served_by_its_id(train, runs, monkeypatch):
    run = train()
    checkpoint.point(run.checkpoints, "best", min(int(path.name) for path in run.checkpoints.glob("0*")))
    serving.write_mlmodel(run.folder, run_id=run.id)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    known = predictor.load(run.folder)
    expected = known.task.rows(known.predict_rows([{"image": image} for image in pixels]))
    store, uri = sqlite_uri(runs / "mlflow.db"), f"runs:/{run.id}/"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    import mlflow

    model = mlflow.pyfunc.load_model(uri)
    column = serving.columns(known.spec)[0]
    rows = model.predict([{column: image.tolist()} for image in pixels])
    assert [row["label"] for row in rows] == [row["label"] for row in expected]
    with served(uri, store) as address:
        for images in ([png(image) for image in pixels], pixels.tolist()):
            status, answer = ask(
                address, {"dataframe_split": {"columns": [column], "data": [[image] for image in images]}}
            )
            assert status == 200
            for found, wanted in zip(answer["predictions"], expected, strict=True):
                assert found["label"] == wanted["label"]
                assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-4)
        status, answer = ask(address, {"dataframe_records": [{column: png(pixels[0])}]})
        assert status == 200 and len(answer["predictions"]) == 1
        for secret in (str(run.folder / "run.json"), "/etc/passwd", {"path": "/etc/passwd"}):
            status, answer = ask(address, {"dataframe_records": [{column: secret}]})
            assert status == 400 and "base64" in answer["message"] and "Traceback" not in json.dumps(answer)
        status, _ = ask(address, {"dataframe_records": [{"path": "/etc/passwd", "bytes": None}]})
        assert status == 400


@pytest.mark.usefixtures("short_timing")
def test_a_compressed_run_is_served_like_any_other(train, runs, dlrun):
    source = train("model=cnn", "model.channels=[8,16]", "model.convolutions=1")
    words = ("compression=quantize_static", "compression.quantize_static.examples=64")
    code, out, err = dlrun("compress", source.id, *words, "--runs", str(runs), "--json")
    assert code == 0, err
    run = find(runs, json.loads(out)["run_id"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    known = predictor.load(run.folder)
    expected = known.task.rows(known.predict_rows([{"image": image} for image in pixels]))
    column = serving.columns(known.spec)[0]
    with served(f"runs:/{run.id}/", sqlite_uri(runs / "mlflow.db")) as address:
        status, answer = ask(address, {"dataframe_records": [{column: image.tolist()} for image in pixels]})
    assert status == 200
    for found, wanted in zip(answer["predictions"], expected, strict=True):
        assert found["label"] == wanted["label"]
        assert found["probability"] == pytest.approx(wanted["probability"], rel=1e-6)
