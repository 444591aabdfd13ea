"""A predictor's model as one graph of tensors, with its preprocessing inside, and the proof that it is the model.

`traced` gives the graph (torch.export); neighbours write it (`_exporting_onnx.py`,
`_exporting_torch.py`) and compare it with the model (`_exporting_agreement.py`). What goes
out without a graph (weights, a folder of the transformers library, an MLflow model) is in `_exporting_weights.py`.
"""

# B batch, T places of a text

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from dlrun import build
from dlrun.compression import _exporter, _quantized
from dlrun.compression._onnx_graph import OnnxGraph
from dlrun.compression._pt2e_graph import Pt2eGraph
from dlrun.contracts import Batch, Dataset, DataSpec, Exportable, Inputs, Task
from dlrun.errors import DlrunError

SIZES = (1, 2, 5)  # rows at which a graph is compared with the model


@dataclass(frozen=True)
class Source:
    """What is exported: a model in evaluation on the CPU, and all that stands around it."""

    model: nn.Module
    inputs: Inputs
    spec: DataSpec
    task: Task
    batch_size: int
    load: Callable[[], Dataset]
    evaluate: Callable[[str], dict[str, float]] | None = None  # of an ensemble, as it combines its members itself

    @staticmethod
    def of(predictor: Any) -> Source:
        """Of the predictor of a run. Raises: DlrunError for an ensemble that is no one graph."""
        if hasattr(predictor, "members"):
            from dlrun import _exporting_ensemble

            return _exporting_ensemble.source(predictor)
        task = build.task(predictor.config.task, predictor.registry, predictor.spec)
        model = predictor.model.eval().requires_grad_(False)
        size = 2 * predictor.config.data.batch_size
        return Source(model, predictor.inputs, predictor.spec, task, size, lambda: predictor.dataset)

    @property
    def dataset(self) -> Dataset:
        """The run's data, read when it is first asked for."""
        return self.load()

    @property
    def split(self) -> str:
        """The rows that examples and checks are taken from: validation, where there is some."""
        return next(name for name in ("valid", "test", "train") if name in self.dataset.splits)

    def rows(self, count: int) -> Batch:
        """The first rows of the split as they are stored, over again where there are too few."""
        split = self.dataset.split(self.split)
        return split.gather(torch.arange(count) % len(split))


class TensorFact(NamedTuple):
    """One input or output of a graph. shape: numbers, and names of what may have any size ("batch", "length")."""

    name: str
    kind: str  # e.g. "uint8"
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Traced:
    """A graph. inputs, outputs: in its order.   prepares: whether preprocessing is inside.

    program: None of a model that is a finished ONNX file already.

    ragged: inputs that may have any length -> the input that holds the lengths of their rows, or None.
    shape: how the outputs are nested where the model's code reads them.
    """

    program: Any  # torch.export.ExportedProgram
    source: Source
    form: nn.Module
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    prepares: bool
    ragged: dict[str, str | None]
    nesting: Any

    @property
    def shortest(self) -> int:
        """The least length that the graph takes, where it takes any above."""
        bounds = self.program.range_constraints.values() if self.program is not None else ()
        return max((int(bound.lower) for bound in bounds if bound.lower >= 2), default=1)

    def given(self, stored: Batch) -> dict[str, Tensor]:
        """The graph's inputs, of a batch as it is stored."""
        batch = stored if self.prepares else self.source.inputs.prepare(stored)
        return {fact.name: batch[fact.name] for fact in self.inputs}

    def examples(self) -> Iterator[dict[str, Tensor]]:
        """Inputs of several numbers of rows, and of several lengths where any will do."""
        for size in SIZES:
            whole = self.given(self.source.rows(size))
            yield whole
            if self.ragged:
                yield cut(whole, self.ragged, lambda length: min(length, max(self.shortest, -(-length // 2))))


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Without the warnings of the exporters, which are about their own code."""
    logger = logging.getLogger("torch.utils._pytree")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class _Graph(nn.Module):
    """From fields by their names to a flat tuple of tensors.   fields: what goes in.   inputs: what the form reads."""

    def __init__(
        self, form: nn.Module, prepare: Callable[[Batch], Batch] | None, fields: Sequence[str], inputs: Sequence[str]
    ) -> None:
        super().__init__()
        self.form, self.prepare, self.inputs = form, prepare, tuple(inputs)

        def forward(*given: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
            return self.answer(dict(zip(fields, given, strict=False)) | named)

        # torch names a graph's inputs, and what it checks of them, by this signature; **fields alone it cannot check.
        each = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in fields]
        forward.__signature__ = inspect.Signature(each)  # type: ignore[attr-defined]
        self.forward = forward

    def answer(self, fields: Batch) -> tuple[Tensor, ...]:
        batch = self.prepare(fields) if self.prepare is not None else fields
        return tuple(trees.tree_leaves(self.form(*[batch[name] for name in self.inputs])))


def traced(source: Source, format: str = "onnx") -> Traced:
    """The graph of a model: any number of rows, any length of texts, preprocessing inside; or as much of it as goes.

    format: to be written, "onnx" or "torch". Raises: DlrunError where the model's code is no graph of that format.
    """
    if isinstance(source.model, OnnxGraph):
        from dlrun import _exporting_finished

        return _exporting_finished.traced(source, source.model)
    if isinstance(source.model, Pt2eGraph) and format == "onnx":
        raise DlrunError(
            "export: torch made this run's int8 graph (backend=pt2e), and as ONNX its outputs differ",
            "compression.quantize_static.backend=onnxruntime gives an ONNX file; this run: --format torch",
        )
    model: nn.Module = _quantized.written_out(source.model)
    form = model.exportable() if isinstance(model, Exportable) else model
    form = form.eval()
    stored = source.rows(3)
    needed = _needed(source, stored)
    prepared = source.inputs.prepare(dict(stored))  # also lets a pipeline make what it keeps, before it is traced
    reasons = []
    for prepares in (True, False):
        names = needed if prepares else source.spec.inputs
        example = {name: (stored if prepares else prepared)[name] for name in names}
        ragged = any_length(example)
        graph = _Graph(form, source.inputs.prepare if prepares else None, names, source.spec.inputs)
        for free in (ragged, {}) if ragged else ({},):
            try:
                with quietly(), torch.no_grad():
                    program = _program(graph, example, free)
                    said = form(*[prepared[name] for name in source.spec.inputs])
            except Exception as error:  # tracing runs any model's code, and says no in many ways
                reasons.append(error)
                continue
            facts_in, facts_out = _facts(example, said, free, source.spec, program)
            nesting = trees.tree_structure(said)
            return Traced(program, source, form, facts_in, facts_out, prepares, free, nesting)
    raise no_graph(source.model, reasons[0]) from reasons[0]


def no_graph(model: nn.Module, error: Exception) -> DlrunError:
    """The user's view of a model that cannot be traced."""
    return DlrunError(
        f"export: {type(model).__name__} is no graph of tensors: {_exporter.reason(error)[:300]}",
        "give the model an exportable() that is (docs/export.md), or --format safetensors",
    )


def _program(graph: _Graph, example: dict[str, Tensor], ragged: Mapping[str, str | None]) -> Any:
    any_size = torch.export.Dim.DYNAMIC
    sizes = {name: {0: any_size, **({1: any_size} if name in ragged else {})} for name in example}
    return torch.export.export(graph, (), example, dynamic_shapes=sizes)


def _needed(source: Source, stored: Batch) -> tuple[str, ...]:
    """The stored fields that the model's inputs are made of."""
    names = [name for name in source.spec.inputs if name in stored]
    while True:
        try:
            source.inputs.prepare({name: stored[name] for name in names})
            return tuple(names)
        except KeyError as error:
            missing = str(error.args[0]) if error.args else ""
            if missing not in stored or missing in names:
                raise
            names.append(missing)


def any_length(batch: Mapping[str, Tensor]) -> dict[str, str | None]:
    """The inputs whose second dimension is a length, and the input that says how long each row is."""
    found: dict[str, str | None] = {}
    for name in batch:
        own = [f"{name}_lengths", *(["lengths", "frames"] if name == next(iter(batch)) else [])]
        lengths = next((other for other in own if other in batch), None)
        if batch[name].dim() >= 2 and (lengths is not None or name in ("tokens", "source")):
            found[name] = lengths
    return found


def cut(batch: Mapping[str, Tensor], ragged: Mapping[str, str | None], to: Callable[[int], int]) -> dict[str, Tensor]:
    """The batch with its texts cut to `to(length)` places, and their lengths with them."""
    made = dict(batch)
    for name, lengths in ragged.items():
        length = to(batch[name].shape[1])
        made[name] = batch[name][:, :length]
        if lengths is not None:
            made[lengths] = batch[lengths].clamp(max=length)
    return made


def _facts(
    example: Mapping[str, Tensor], said: Any, ragged: Mapping[str, Any], spec: DataSpec, program: Any
) -> tuple[tuple[TensorFact, ...], tuple[TensorFact, ...]]:
    """What goes in and out; a size of an output that is no number goes by the name of the input's."""
    names: dict[str, str] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"][-len(example) :]
    for node, name in zip(placeholders, example, strict=True):
        shape = node.meta["val"].shape
        names[str(shape[0])] = "batch"
        if name in ragged:
            single = len(ragged) == 1
            names[str(shape[1])] = "length" if single else f"{name}_length"
    inputs = tuple(
        TensorFact(name, _kind(tensor), _sizes(node.meta["val"].shape, names))
        for node, (name, tensor) in zip(placeholders, example.items(), strict=True)
    )
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    leaves = trees.tree_leaves(said)
    outputs = tuple(
        TensorFact(name, _kind(leaf), _sizes(node.meta["val"].shape, names))
        for name, leaf, node in zip(output_names(said, spec), leaves, returned, strict=True)
    )
    return inputs, outputs


def _sizes(shape: Sequence[Any], names: Mapping[str, str]) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else names.get(str(size), str(size)) for size in shape)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def output_names(said: Any, spec: DataSpec) -> list[str]:
    if isinstance(said, tuple) and hasattr(said, "_fields"):
        return list(said._fields)  # type: ignore[attr-defined]
    leaves = trees.tree_leaves(said)
    if len(leaves) == 1:
        return ["prediction" if "targets" in spec.sizes else "logits"]
    return [f"output_{index}" for index in range(len(leaves))]
