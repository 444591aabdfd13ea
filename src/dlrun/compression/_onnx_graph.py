"""A model as an ONNX graph that ONNX Runtime runs on the processor; its bytes are one tensor of the run's file."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.compression import _exporter, _onnx_session, _quantized
from dlrun.contracts import Batch, CompressionTools, Exportable
from dlrun.errors import DlrunError

_OF_ANY_LENGTH = ("tokens", "source", "spectrogram")  # inputs [B, T, …] whose T differs from batch to batch


class OnnxGraph(nn.Module):
    """Tensors in, one tensor out. graph: uint8 [bytes] of the file, which the run's checkpoint holds."""

    trains = False
    hides = True  # its weights, from whoever counts them

    def __init__(self, graph: Tensor) -> None:
        super().__init__()
        self.register_buffer("graph", graph)
        self._session: tuple[tuple, Any] | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        session = self._running()
        given = {value.name: tensor.detach().cpu().contiguous() for value, tensor in self._pairs(session, inputs)}
        said = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        return torch.from_numpy(said[0]).to(inputs[0].device)

    def _pairs(self, session: Any, inputs: Sequence[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        """Inputs of the graph with their tensors; one that the graph does not read has been left out of it."""
        by_name = {f"input_{index}": tensor for index, tensor in enumerate(inputs)}
        return ((value, by_name[value.name]) for value in session.get_inputs())

    def _running(self) -> Any:
        graph: Any = self.graph
        state = (graph.data_ptr(), graph._version)
        if self._session is None or self._session[0] != state:
            required("onnxruntime")
            self._session = state, _onnx_session.session(graph.cpu().numpy().tobytes())
        return self._session[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_session": None}  # what runs cannot be copied


def required(name: str) -> Any:
    """A package of the extra. Raises: DlrunError with the line that installs it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DlrunError(f"this compression needs {name.split('.')[0]}", 'pip install "dlrun[compress]"') from error


def require_extras() -> None:
    """Raises: DlrunError where a package is missing that makes such graphs."""
    for name in ("onnx", "onnxscript", "onnxruntime.quantization"):
        required(name)


def exported(model: nn.Module, tools: CompressionTools, method: str, path: Path) -> list[str]:
    """Write the model as ONNX, for any number of examples. Returns the names of its inputs, in order.

    Raises: DlrunError for a model that has no such graph.
    """
    required("onnxscript")
    names = tools.spec.inputs
    batch = next(iter(tools.batches("train", 4)))
    plain: nn.Module = _quantized.written_out(model)
    form = plain.exportable() if isinstance(plain, Exportable) else plain
    form = form.eval().cpu()
    inputs = [batch[name].cpu() for name in names]
    shapes = [_dynamic(name, tensor) for name, tensor in zip(names, inputs, strict=True)]
    said = [f"input_{index}" for index in range(len(names))]
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _Positional(form), tuple(inputs), input_names=said, dynamic_shapes=(tuple(shapes),), dynamo=True,
                verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter says no in many ways
        raise DlrunError(
            f"{method}: {type(model).__name__} cannot be written as one graph: {_exporter.reason(error)[:160]}",
            "compression=quantize_weights needs none, nor does quantize_dynamic with backend=torch",
        ) from error
    if len(program.model.graph.outputs) != 1:
        raise DlrunError(f"{method}: {type(model).__name__} gives several tensors", "compression=quantize_weights")
    program.save(str(path))
    return said


class _Positional(nn.Module):
    def __init__(self, form: nn.Module) -> None:
        super().__init__()
        self.form = form

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.form(*inputs)


def _dynamic(name: str, tensor: Tensor) -> Mapping[int, Any]:
    sizes: dict[int, Any] = {0: torch.export.Dim("batch")}
    # Each input has a length of its own: a source is not as long as its translation.
    return sizes | {1: torch.export.Dim.DYNAMIC} if name in _OF_ANY_LENGTH and tensor.dim() > 1 else sizes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters and quantizers say of their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Reader:
    """Calibration examples as ONNX Runtime reads them."""

    def __init__(self, tools: CompressionTools, names: Sequence[str], examples: int) -> None:
        self._rows = self._feeds(tools.batches("train", examples), tools.spec.inputs, names)

    def _feeds(self, batches: Iterator[Batch], fields: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            yield {name: batch[field].cpu().contiguous().numpy() for name, field in zip(names, fields, strict=True)}

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def static(model: nn.Module, tools: CompressionTools, examples: int, calibration: str) -> bytes:
    """The graph with int8 weights, a scale a channel, and int8 activations with scales that examples gave (QDQ)."""
    quantization = required("onnxruntime.quantization")
    methods = quantization.CalibrationMethod
    chosen = {"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[calibration]
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = _paths(folder)
        names = exported(model, tools, "quantize_static", plain)
        with _quiet():
            _prepared(plain, ready)
            quantization.quantize_static(
                str(ready), str(small), _Reader(tools, _read_by(ready, names), examples), per_channel=True,
                quant_format=quantization.QuantFormat.QDQ, activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8, calibrate_method=chosen,
            )  # fmt: skip
        return _stripped(small)


def dynamic(model: nn.Module, tools: CompressionTools) -> bytes:
    """The graph with int8 weights, whose activations are rounded as they come."""
    quantization = required("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = _paths(folder)
        exported(model, tools, "quantize_dynamic", plain)
        with _quiet():
            _prepared(plain, ready)
            quantization.quantize_dynamic(
                str(ready), str(small), per_channel=True, weight_type=quantization.QuantType.QInt8,
                extra_options={"EnableSubgraph": True},  # the bodies of loops: recurrent weights lie in there
            )  # fmt: skip
        return _stripped(small)


def plain(model: nn.Module, tools: CompressionTools) -> bytes:
    """The graph in float32: what an int8 one of the same runtime is compared with."""
    with tempfile.TemporaryDirectory() as folder:
        path, ready, _ = _paths(folder)
        exported(model, tools, "onnxruntime", path)
        with _quiet():
            _prepared(path, ready)
        return ready.read_bytes()


def spoken(model: nn.Module, tools: CompressionTools, method: str) -> dict[str, str]:
    """Of a report: that a model which says sequences does not do so as a graph, which has no steps.

    Raises: DlrunError for a task whose scores are those of what is said.
    """
    if not callable(getattr(model, "step", None)):
        return {}
    if hasattr(tools.task, "generates"):
        raise DlrunError(
            f"{method}: {type(model).__name__} as one graph does not generate, and the task scores what is generated",
            "compression=quantize_dynamic, or quantize_weights, keeps the model, layer for layer",
        )
    return {"generation": "none: the graph predicts the token after each one given; it has no steps to say texts with"}


def as_module(content: bytes) -> OnnxGraph:
    """The graph as a module."""
    return OnnxGraph(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def empty(size: int) -> OnnxGraph:
    """A module for a graph of so many bytes, which are loaded later."""
    return OnnxGraph(torch.zeros(size, dtype=torch.uint8))


def _paths(folder: str) -> tuple[Path, Path, Path]:
    root = Path(folder)
    return root / "plain.onnx", root / "ready.onnx", root / "small.onnx"


def _prepared(path: Path, ready: Path) -> None:
    """Shapes inferred, norms folded into convolutions."""
    shape_inference = required("onnxruntime.quantization.shape_inference")
    shape_inference.quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)


def _read_by(path: Path, names: Sequence[str]) -> list[str]:
    """Names of inputs. A graph that does not read one of them was exported with a constant: all are wanted."""
    onnx = required("onnx")
    there = {value.name for value in onnx.load(str(path)).graph.input}
    return [name for name in names if name in there]


def _stripped(path: Path) -> bytes:
    """The file without what the exporter noted of its own work, which can be more than the weights."""
    onnx = required("onnx")
    model = onnx.load(str(path))
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    _shorten(graph)
    return model.SerializeToString()


def _shorten(graph: Any) -> None:
    """Names of one to three letters for all but what goes in and comes out, and what the bodies of loops call by its
    name: of a small model they are a tenth."""
    kept = {value.name for value in (*graph.input, *graph.output)} | {""} | set(_of_bodies(graph))
    short: dict[str, str] = {}
    free = (name for index in itertools.count() if (name := f"{index:x}") not in kept)

    def new(name: str) -> str:
        if name not in kept and name not in short:
            short[name] = next(free)
        return short.get(name, name)

    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [new(name) for name in names]


def _of_bodies(graph: Any) -> Iterator[str]:
    """Every name in the graphs that nodes hold: they read values of the graph around them, too."""
    for node in graph.node:
        for body in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            yield from (value.name for value in (*body.input, *body.output, *body.initializer))
            yield from (name for part in body.node for name in (*part.input, *part.output))
            yield from _of_bodies(body)
