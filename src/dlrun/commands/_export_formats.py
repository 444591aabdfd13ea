"""The formats of `dlrun export`: what each writes, and how what was written is compared with the model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from torch import nn

    from dlrun.exporting import Source, Traced

GRAPHS = ("onnx", "torch")
METRIC_TOLERANCE = 1e-3  # of the goal metric, times its size where that is above 1


@dataclass(frozen=True)
class Written:
    """files: bytes of each.   facts: what there is to say of them, as JSON."""

    files: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)


def write(format: str, predictor: Any, folder: Path, check: bool) -> Written:
    """Write the model into an empty folder. Raises: DlrunError with code GATE where it is not what the model is."""
    from dlrun.exporting import Source

    if format in GRAPHS:
        facts = _graph(format, Source.of(predictor), folder, check)
    else:
        _require_one_model(predictor, format)
        facts = _weights(format, predictor, folder, check)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return Written({name: path.stat().st_size for name, path in files.items() if path.is_file()}, facts)


def _require_one_model(predictor: Any, format: str) -> None:
    if hasattr(predictor, "members"):
        raise DlrunError(
            f"export: run {predictor.run.short_id} holds several models, and --format {format} is of one",
            "--format onnx, or name one of them: dlrun lineage RUN",
        )


# ---------------------------------------------------------------- graphs


def _graph(format: str, source: Source, folder: Path, check: bool) -> dict[str, Any]:
    from dlrun import _exporting_agreement as agreement
    from dlrun import _exporting_onnx, _exporting_torch, exporting

    writer = {"onnx": _exporting_onnx, "torch": _exporting_torch}[format]
    traced = exporting.traced(source, format)
    facts = writer.write(traced, folder, source.spec.labels)
    if not traced.prepares:
        source.spec.save(folder)  # how the inputs are prepared
    facts |= {
        "inputs": [_described(fact) for fact in traced.inputs],
        "outputs": [_described(fact) for fact in traced.outputs],
        "preprocessing": "in the file" if traced.prepares else "outside",
        "finished": not hasattr(traced.form, "finish"),
    }
    # A .pt2 holds a pickle: it is read back only where that is asked for, and only here, where it was written.
    run = writer.runner(folder) if format == "onnx" or check else _as_traced(traced)
    agreed = agreement.agreement(traced, run)
    if not agreed.holds:
        raise DlrunError(
            f"export: the {format} file differs from the model by {agreed.worst:.2g}; {agreed.allowed:.2g} is allowed",
            "nothing was written; another format: --format safetensors",
            Exit.GATE,
        )
    facts["agreement"] = {"worst": agreed.worst, "allowed": agreed.allowed, "compared": agreed.compared}
    if check:
        facts["check"] = _checked(source, agreement.Loaded(traced, run), as_stored=traced.prepares)
    return facts


def _described(fact: Any) -> dict[str, Any]:
    return {"name": fact.name, "type": fact.kind, "shape": list(fact.shape)}


def _as_traced(traced: Traced) -> Any:
    module: Any = traced.program.module()
    return lambda given: module(**given)


# ---------------------------------------------------------------- weights


def _weights(format: str, predictor: Any, folder: Path, check: bool) -> dict[str, Any]:
    from dlrun import _exporting_weights as weights
    from dlrun.exporting import Source

    source, facts = Source.of(predictor), {}
    if format == "safetensors":
        weights.write_safetensors(predictor, folder)
    elif format == "transformers":
        facts = weights.write_transformers(source, folder)
    else:
        weights.write_mlflow(predictor, folder)
    if not check:
        return facts
    if format == "safetensors":
        read = weights.read_safetensors(predictor, folder)
    elif format == "transformers":
        read = weights.read_transformers(source, folder, facts)
    else:
        from dlrun import predictor as predictors

        read = predictors.load(folder, "cpu", predictor.registry).model
    return facts | {"check": _checked(source, read, as_stored=False)}


# ---------------------------------------------------------------- the check


def _checked(source: Source, exported: nn.Module, *, as_stored: bool) -> dict[str, Any]:
    """The goal metric of the file and of the model on all of the split, in fp32 on the processor.

    Of texts that a model says, the loss of the true ones is compared: the file has no search.
    Raises: DlrunError with code GATE where they differ.
    """
    model, file = _of_the_model(source), _score(source, exported, as_stored)
    metric = source.task.goal.metric if source.task.goal.metric in model else "loss"
    # The loss sees what a metric that counts may not.
    for name in sorted({metric, "loss"} & model.keys()):
        allowed = METRIC_TOLERANCE * max(1.0, abs(model[name]))
        if not abs(model[name] - file[name]) <= allowed:
            raise DlrunError(
                f"export: {source.split}/{name} of the file is {file[name]:.6g}, of the model {model[name]:.6g}; "
                f"{allowed:.2g} of difference is allowed",
                "nothing was written",
                Exit.GATE,
            )
    allowed = METRIC_TOLERANCE * max(1.0, abs(model[metric]))
    return {
        "split": source.split,
        "metric": metric,
        "model": model[metric],
        "exported": file[metric],
        "allowed": allowed,
    }


def _of_the_model(source: Source) -> dict[str, float]:
    return _score(source, source.model, False) if source.evaluate is None else source.evaluate(source.split)


def _score(source: Source, module: nn.Module, as_stored: bool) -> dict[str, float]:
    """Metrics of the split. as_stored: the module prepares its inputs itself."""
    import torch

    from dlrun.training.distributed import World
    from dlrun.training.evaluate import batches, evaluate
    from dlrun.training.features import AsStored
    from dlrun.training.precision import Precision

    task: Any = source.task
    if getattr(task, "generates", False):
        task = replace(task, generates=False)
    device = torch.device("cpu")
    pipeline = AsStored() if as_stored else source.inputs
    stream = batches(
        source.dataset.split(source.split), pipeline, batch_size=source.batch_size, place=lambda batch: batch
    )
    return evaluate(module, task, stream, Precision.of("fp32", device), World(0, 1, device))
