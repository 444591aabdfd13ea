"""Predictions of a split, made once and kept: predictions/<split>-<digest>.safetensors in a run's folder.

The digest is of the weights, the data and whatever of the config decides the outputs, so predictions are never
reused for something else. Data is known again without being read by a stamp (its settings, and sizes and times of its
files), noted beside with the fingerprint that was found when it was last read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlrun import __version__, runs
from dlrun.config import convert
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.contracts import DataSpec, Outputs
    from dlrun.predictor import TrainedModel

_NOTED = "data.json"
# Settings of data that decide nothing of what is predicted.
_OF_TRAINING = ("batch_size", "workers", "augment", "bootstrap")


@dataclass(frozen=True)
class Source:
    """Whose predictions: all that decides them, without its model.

    weights: see predictor.weights_digest.   folder: where they are kept.   open: loads the predictor.
    """

    folder: Path
    config: RunConfig
    spec: DataSpec
    weights: bytes
    open: Callable[[], TrainedModel]

    @staticmethod
    def of(predictor: TrainedModel, folder: Path) -> Source:
        """Of a predictor that is there already."""
        from dlrun.predictor import weights_digest

        step = predictor.step or None  # an ensemble has none
        weights = weights_digest(predictor.run.folder, step)
        return Source(folder, predictor.config, predictor.spec, weights, lambda: predictor)


class Predicted(NamedTuple):
    """seconds: that it took to predict, now or when it was done.   is_new: whether that was now."""

    outputs: Outputs
    seconds: float
    is_new: bool
    fingerprint: str  # of the data


def predicted(source: Source, split: str, reporter: Any) -> Predicted:
    """The predictions of a split, which are made where the folder does not have them.

    Raises: DlrunError for a split that the data does not have.
    """
    known = _noted(source)
    if known is not None:
        found = _stored(_path(source, split, known))
        if found is not None:
            return Predicted(*found, is_new=False, fingerprint=known)
    predictor = source.open()
    fingerprint = predictor.dataset.fingerprint
    _note(source, fingerprint)
    path = _path(source, split, fingerprint)
    found = _stored(path) if fingerprint != known else None
    if found is not None:
        return Predicted(*found, is_new=False, fingerprint=fingerprint)
    require_split(predictor, split)
    _warm_up(predictor, split)
    started = time.perf_counter()
    with reporter.console.status(f"predicting {len(predictor.dataset.split(split)):,} examples of {split}"):
        outputs = predictor.predict_split(split)
    seconds = time.perf_counter() - started
    store(source, split, fingerprint, outputs, seconds, reporter)
    return Predicted(outputs, seconds, True, fingerprint)


def _warm_up(predictor: TrainedModel, split: str) -> None:
    """Predict a batch, at most a tenth of the split and only where nothing is decoded for it: what a process does
    once is then no part of the first model's seconds."""
    import torch

    rows = predictor.dataset.split(split)
    count = min(2 * predictor.config.data.batch_size, len(rows) // 10)
    if rows.in_memory and count:
        predictor.predict_changed(split, torch.arange(count), lambda batch: batch)


def require_split(predictor: TrainedModel, split: str) -> None:
    """Raises: DlrunError naming the splits that the data has."""
    known = predictor.dataset.splits
    if split not in known:
        raise DlrunError(f"the data has no '{split}' split; it has {', '.join(known)}", f"--split {list(known)[-1]}")


def store(source: Source, split: str, fingerprint: str, outputs: Outputs, seconds: float, reporter: Any) -> None:
    """Keep predictions; a line on stderr where that is not possible."""
    from safetensors.torch import save

    path = _path(source, split, fingerprint)
    tensors = {name: field.detach().contiguous().cpu() for name, field in outputs.fields.items()}
    try:
        path.parent.mkdir(exist_ok=True)
        content = save({**tensors, "id": outputs.ids.contiguous().cpu()}, {"seconds": repr(seconds)})
        runs.write_atomically(path, content)
        _note(source, fingerprint)
    except (OSError, DlrunError) as error:  # a full disk, or somebody else's run: the metrics are there all the same
        reporter.note(f"warning: the predictions are not kept: {str(error).partition(chr(10))[0]}")


def _path(source: Source, split: str, fingerprint: str) -> Path:
    settings = [convert.to_plain(source.config.task), source.config.train.precision, source.spec.to_json()]
    parts = [source.weights, fingerprint.encode(), json.dumps(settings, sort_keys=True).encode()]
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
    return source.folder / "predictions" / f"{split}-{digest}.safetensors"


def _stored(path: Path) -> tuple[Outputs, float] | None:
    """Predictions of an earlier call, and what they took; None where there are none, or the file is damaged."""
    from safetensors import SafetensorError, safe_open

    from dlrun.contracts import Outputs

    try:
        with safe_open(path, "pt") as file:
            fields = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            seconds = float((file.metadata() or {}).get("seconds", "nan"))
        return Outputs(fields.pop("id"), fields), seconds
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


# ---------------------------------------------------------------- knowing data again


def _noted(source: Source) -> str | None:
    """The fingerprint that this data had when it was last read, if nothing about it has changed since."""
    with contextlib.suppress(DlrunError, AttributeError):
        return runs.read_json(source.folder / "predictions" / _NOTED).get(_stamp(source.config))
    return None


def _note(source: Source, fingerprint: str) -> None:
    path = source.folder / "predictions" / _NOTED
    with contextlib.suppress(OSError, DlrunError):
        path.parent.mkdir(exist_ok=True)
        runs.write_json(path, {_stamp(source.config): fingerprint})


def _stamp(config: RunConfig) -> str:
    data = {name: value for name, value in convert.to_plain(config.data).items() if name not in _OF_TRAINING}
    total = hashlib.sha256(json.dumps([__version__, config.seed, data], sort_keys=True, default=str).encode())
    for text in _texts(data):
        for path in _files(Path(text).expanduser()):
            status = path.stat()
            total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return total.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _files(path: Path) -> list[Path]:
    """The file, or all files of the folder, if there is one of this name."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            return []
    except OSError:  # a text too long to be a name
        return []
    return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
