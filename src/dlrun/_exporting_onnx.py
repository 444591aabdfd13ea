"""A graph as an ONNX file, and ONNX Runtime in place of the model."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun import _exporting_finished
from dlrun.compression import _onnx_session
from dlrun.errors import DlrunError
from dlrun.exporting import Traced, no_graph, quietly

FILE = "model.onnx"


def write(traced: Traced, folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Write model.onnx (weights beyond 2 GB beside it). Returns {"opset": …}.

    Raises: DlrunError for a graph with an operation that ONNX has not, and without the extra `export`.
    """
    _require("onnxscript", "onnxruntime")
    if traced.program is None:
        return _exporting_finished.write(traced, folder / FILE, labels)
    try:
        with quietly(), contextlib.redirect_stdout(io.StringIO()), _silenced("torch.onnx", "onnxscript", "onnx_ir"):
            program: Any = torch.onnx.export(traced.program, dynamo=True, verbose=False)
    except Exception as error:  # the exporter says no in many ways
        raise no_graph(traced.source.model, error) from error
    model = program.model
    for value, fact in zip(model.graph.inputs, traced.inputs, strict=True):
        value.name = fact.name
    _name_outputs(model.graph, traced)
    _name_sizes(model.graph, traced)
    model.producer_name = "dlrun"
    if labels:
        model.metadata_props["labels"] = json.dumps(list(labels), ensure_ascii=False)
    program.save(folder / FILE)
    return {"opset": int(model.opset_imports[""])}


def _name_outputs(graph: Any, traced: Traced) -> None:
    taken = {value.name for value in graph.inputs}
    for value, fact in zip(graph.outputs, traced.outputs, strict=True):
        if value.name not in taken:  # an output that is an input keeps its name
            value.name = fact.name


def _name_sizes(graph: Any, traced: Traced) -> None:
    """Call sizes that may vary "batch" and "length" at the graph's inputs and outputs."""
    import onnx_ir

    for values, facts in ((graph.inputs, traced.inputs), (graph.outputs, traced.outputs)):
        for value, fact in zip(values, facts, strict=True):
            value.shape = onnx_ir.Shape(list(fact.shape))


def runner(folder: Path) -> Callable[[dict[str, Tensor]], list[Tensor]]:
    """What ONNX Runtime says on the processor: inputs by name to outputs in order."""
    _require("onnxruntime")
    session = _onnx_session.session(str(folder / FILE))
    names = [value.name for value in session.get_inputs()]

    def run(given: dict[str, Tensor]) -> list[Tensor]:
        said = session.run(None, {name: given[name].contiguous().numpy() for name in names})
        return [torch.from_numpy(array) for array in said]  # type: ignore[arg-type]

    return run


def _require(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise DlrunError(f"export --format onnx needs {package}", 'pip install "dlrun[export]"') from error


@contextlib.contextmanager
def _silenced(*names: str) -> Generator[None]:
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
