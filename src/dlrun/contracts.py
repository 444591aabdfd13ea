"""The vocabulary every room shares: batches, what data is, what tasks, splits and tools must offer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dlrun.errors import DlrunError, Exit
from dlrun.randomness import Draws
from dlrun.runs import read_json, write_atomically, write_json

# One tensor a field; the first dimension is the example. "id" (int64 row numbers) is always there. The names that
# rooms agree on (B examples, K boxes of the fullest example):
#   image       uint8 [B, C, H, W], 0..255 until `Inputs.prepare` makes it normalised floats
#   label       int64 [B]                   target      float32 [B, T]
#   mask        uint8 [B, h, w], a class a pixel, IGNORED where none counts; maybe of another size than image
#   boxes       float32 [B, K, 4], left, top, right, bottom in pixels of image; zeros after the example's last
#   box_labels  int64 [B, K], -1 after the last      box_crowd  bool [B, K], a box around many things
#   size        int64 [B, 2], height and width of the picture as it was given
#   tokens      int64 [B, T], 0 after the example's last; lengths  int64 [B]
#   targets     int64 [B, T], the token to be said at each place, NO_TARGET where none counts
#   num_targets int64 [B], how many of an example's targets count; stays on the CPU, so that nobody waits to count
#   num_tokens  int64 [B], of texts on a device: how many a model reads of each (`num_tokens`); stays on the CPU
#   source      int64 [B, S], what is to be translated or summed up, padded as tokens; source_lengths  int64 [B]
#   reference   uint8 [B, L], the true text (`tokens.to_bytes`); several references of an example are one such text
#   numbers     float32 [B, F], scaled; categories int64 [B, M], codes (0 unknown, 1 missing)
#   audio       int16 [B, S], samples until `Inputs.prepare` makes frames of them; audio_lengths  int64 [B]
#   spectrogram float32 [B, T, F], 0 after the example's last frame; frames  int64 [B]
#   series      float32 [B, W, C], the latest rows of a series; future  float32 [B, H, T], what comes after them
#   user        int64 [B], item  int64 [B], ids from 1; 0 is nobody, and nothing
#   history     int64 [B, T], items a user had, the latest at the right, 0 in front of the first
#   candidates  int64 [B, C], items to be ranked, the true one first where it is known
#   seen        int64 [B, S], items not to be recommended any more, 0 after the last
Batch = dict[str, Tensor]
NO_TARGET = -100
IGNORED = 255  # of a mask: neither trained on nor scored
Row = dict[str, Any]  # one example as a person gives it, or one prediction as a person reads it


@dataclass(frozen=True)
class Goal:
    """The metric being chased: what best, early stopping and a sweep mean."""

    metric: str
    mode: Literal["max", "min"]

    def better(self, value: float, than: float | None) -> bool:
        """Whether value improves on an earlier one (None: nothing was measured yet)."""
        if value != value:
            return False
        if than is None or than != than:
            return True
        return value > than if self.mode == "max" else value < than


class Loss(NamedTuple):
    """A loss summed over targets, and how many targets it was summed over."""

    sum: Tensor
    count: int


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of its data, as plain JSON values; written to spec.json, its files beside it.

    inputs: the batch fields handed to the model, in order.   target: the field to predict.
    sizes: e.g. {"classes": 10, "channels": 1}.               shapes: of one example's inputs.
    labels: names of the classes, in order of their index.
    assets: facts of the input pipeline (means, column names); "given_by": of sizes that the data set has where another
        setting is made, that setting.
    files: what is too large for them (a tokenizer, an id map), by file name in assets/.
    """

    inputs: tuple[str, ...]
    target: str
    sizes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    labels: tuple[str, ...] = ()
    assets: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def size(self, name: str) -> int:
        """A size by name. Raises DlrunError that says what this data does have."""
        if name not in self.sizes:
            has = ", ".join(f"{key}={value}" for key, value in sorted(self.sizes.items())) or "no sizes"
            setting = self.assets.get("given_by", {}).get(name)
            raise DlrunError(
                f"this task or model needs data with '{name}'; this data set has {has}",
                f"it has that too: {setting}" if setting else "choose another task, model or data set: dlrun list",
            )
        return self.sizes[name]

    @property
    def num_outputs(self) -> int:
        """Numbers a model says of an example: one a target, one a label of which any number holds, or one a class."""
        return self.size(next((name for name in ("targets", "labels") if name in self.sizes), "classes"))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the only input. Raises DlrunError where there are several."""
        if len(self.inputs) != 1:
            raise DlrunError(
                f"this model takes one input; the data set has {len(self.inputs)}: {', '.join(self.inputs)}",
                "choose a model for such data: dlrun list model",
            )
        return self.shapes[self.inputs[0]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values that `from_json` turns back into an equal DataSpec; of files, their SHA-256."""
        return asdict(replace(self, files={})) | {
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()},
            "inputs": list(self.inputs),
            "labels": list(self.labels),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> DataSpec:
        """The inverse of `to_json`."""
        shapes = {name: tuple(shape) for name, shape in stored["shapes"].items()}
        return DataSpec(
            tuple(stored["inputs"]),
            stored["target"],
            dict(stored["sizes"]),
            shapes,
            tuple(stored["labels"]),
            dict(stored["assets"]),
            dict(files or {}),
        )

    def save(self, folder: Path) -> None:
        """Write spec.json and assets/ into a run's folder."""
        for name, content in self.files.items():
            (folder / "assets").mkdir(exist_ok=True)
            write_atomically(folder / "assets" / name, content)
        write_json(folder / "spec.json", self.to_json())

    @staticmethod
    def load(folder: Path) -> DataSpec:
        """The spec of a run's folder. Raises: DlrunError with code DATA for a file that is not there or has changed."""
        stored = read_json(folder / "spec.json")
        files = {}
        for name, digest in stored.get("files", {}).items():
            path = folder / "assets" / name
            content = path.read_bytes() if Path(name).name == name and path.is_file() else b""
            if hashlib.sha256(content).hexdigest() != digest:
                raise DlrunError(f"{path}: is not the file the run was trained with", code=Exit.DATA)
            files[name] = content
        return DataSpec.from_json(stored, files)


class Split(Protocol):
    """Rows of one split. `gather` is a pure function of the rows, and is safe in worker processes."""

    in_memory: bool  # True: gather is an index into tensors; False: it decodes, and wants workers

    def __len__(self) -> int: ...

    def gather(self, rows_B: Tensor) -> Batch:
        """CPU tensors of these row numbers, "id" included. May leave out rows that are skipped as bad."""
        ...


@runtime_checkable
class WithLengths(Protocol):
    """A split whose rows differ in length: batches are made of rows of like length, so that little is padding."""

    lengths: Tensor  # int64 [N]; of rows of two texts, a number near which rows are alike in both


class Inputs(Protocol):
    """The input pipeline of a run, rebuilt from its DataSpec alone."""

    def encode(self, rows: Sequence[Row]) -> Batch:
        """New rows (paths, pictures, numbers, words) as the batch fields named in spec.inputs."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """Stored fields to model inputs on the batch's device (uint8 pixels to normalised floats)."""
        ...


@runtime_checkable
class WithNotes(Protocol):
    """An input pipeline that may not read all that new rows say."""

    def notes(self) -> list[str]:
        """What was lost of the rows encoded so far, one sentence each; nothing where nothing was."""
        ...


@dataclass(frozen=True)
class Dataset:
    """What a data component builds. Splits are named train, valid and test; valid and test may be absent.

    notes: what was guessed or made, one sentence each, shown to the user.
    fingerprint: changes when the content does; recorded in the run.
    """

    spec: DataSpec
    splits: dict[str, Split]
    inputs: Inputs
    notes: tuple[str, ...] = ()
    fingerprint: str = ""

    def split(self, name: str) -> Split:
        """A split by name. Raises DlrunError naming those that exist."""
        if name not in self.splits:
            raise DlrunError(f"the data has no '{name}' split; it has {', '.join(sorted(self.splits))}")
        return self.splits[name]


# Batch operation for training only, before `Inputs.prepare`, so pixels are still in 0..255.
Augmentation = Callable[[Batch, Draws], Batch]


@dataclass(frozen=True)
class Outputs:
    """What a predictor says of examples, by their ids; every field's first dimension is the example."""

    ids: Tensor
    fields: dict[str, Tensor]

    @staticmethod
    def concatenate(parts: Sequence[Outputs]) -> Outputs:
        """One Outputs of several, in order. Fields must agree in name and shape, but for texts (uint8 [B, L]): they
        are filled up to the longest."""
        names = parts[0].fields
        return Outputs(
            torch.cat([part.ids for part in parts]),
            {name: torch.cat(_equally_long([part.fields[name] for part in parts])) for name in names},
        )

    def by_id(self) -> Outputs:
        """The same examples in ascending order of id."""
        order = torch.argsort(self.ids)
        return Outputs(self.ids[order], {name: field[order] for name, field in self.fields.items()})


def _equally_long(texts: list[Tensor]) -> list[Tensor]:
    if texts[0].dim() != 2 or texts[0].dtype != torch.uint8:
        return texts
    longest = max(text_BL.shape[1] for text_BL in texts)
    return [nn.functional.pad(text_BL, (0, longest - text_BL.shape[1])) for text_BL in texts]


class Metric(Protocol):
    """A number that is a function of sums, so that ranks can be added up."""

    def update(self, outputs: Outputs) -> None: ...

    def state(self) -> list[Tensor]:
        """The float64 sums; `reduce` adds them over ranks in place."""
        ...

    def compute(self) -> dict[str, float]:
        """Values by name, e.g. {"accuracy": 0.98}."""
        ...


@runtime_checkable
class WithTables(Protocol):
    """A metric with something to show beside numbers."""

    def tables(self) -> dict[str, list]:
        """Nested lists by name, e.g. {"confusion": counts [C][C]}."""
        ...


@runtime_checkable
class Gathered(Protocol):
    """A metric that needs every example's rows at once (average precision), so ranks cannot be added up."""

    def rows(self) -> Tensor:
        """What this rank has seen, float64 [n, k]."""
        ...

    def receive(self, rows: Tensor) -> None:
        """The rows of all ranks, in place of its own."""
        ...


class Task(Protocol):
    """What a model is trained to do. Owns no trained model, optimizer or device."""

    goal: Goal
    additive: bool  # False: the loss is no sum over targets (DESIGN: micro-batches are then averaged)
    # unit: str, optional: what `count` counts; see the function `unit`
    # hub_kind: str, optional; see the function `hub_kind`

    def count(self, batch: Batch) -> int:
        """Targets in this batch; no device synchronisation."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Loss: ...

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Predictions by example id, mergeable; holds the target's field where the batch has one."""
        ...

    def metrics(self) -> list[Metric]:
        """Fresh metrics, to be updated with `outputs`."""
        ...

    def rows(self, outputs: Outputs) -> list[Row]:
        """Predictions a person can read, one dict an example."""
        ...


def unit(task: Task) -> str:
    """What a task counts, in a rate: "samples" unless it says "tokens"."""
    return getattr(task, "unit", "samples")


def hub_kind(task: Task) -> str:
    """What the Hugging Face hub calls models of a task, {} standing for what goes in; "other" unless the task says."""
    return getattr(task, "hub_kind", "other")


def unit_of_rate(task: Task) -> str:
    """What `processed` counts: the tokens of texts, else what the task counts."""
    inputs = task.spec.inputs if isinstance(task, OfData) else ()
    return "tokens" if "tokens" in inputs else unit(task)


def processed(task: Task, batch: Batch) -> int:
    """How much of a batch is worked on, in a rate. Asks no device that has to be waited for."""
    if "tokens" not in batch:
        return task.count(batch)
    found_B = batch["num_tokens"] if "num_tokens" in batch else num_tokens(batch)
    return task.count(batch) if found_B is None else int(found_B.sum())


def num_tokens(batch: Batch) -> Tensor | None:
    """int64 [B]: tokens that a model reads of each text, and of a pair those of both; None where there are no texts."""
    if "source_lengths" in batch and "targets" in batch:
        return batch["source_lengths"] + (batch["targets"] != NO_TARGET).sum(1)
    return batch.get("lengths") if "tokens" in batch else None


@runtime_checkable
class OfData(Protocol):
    """A task that keeps the spec of its data."""

    spec: DataSpec


@runtime_checkable
class WithTokens(Protocol):
    """A split of texts, which knows how many tokens a model reads of all of them."""

    num_tokens: int


@runtime_checkable
class WithPictures(Protocol):
    """A task whose examples and predictions can be drawn."""

    def pictures(self, batch: Batch, outputs: Outputs) -> list[Any]:
        """A PIL image an example, truth and prediction side by side. batch: on the CPU, not prepared."""
        ...


@runtime_checkable
class WithFiles(Protocol):
    """A task whose predictions are more than rows: masks, boxes drawn into the picture."""

    def files(self, names: Sequence[str], batch: Batch, outputs: Outputs) -> Iterator[tuple[str, bytes]]:
        """File names and contents for these examples. batch: as `Inputs.encode` made it."""
        ...

    def index(self, names: Sequence[str], pictures: Sequence[str], outputs: Outputs) -> tuple[str, Any]:
        """A JSON document over these examples, and its file name (COCO results, say). pictures: the files as given.

        Of the documents of several parts, lists of objects are joined, but for those with the same ids in every part
        (categories); all else is the first's.
        """
        ...


@runtime_checkable
class Thorough(Protocol):
    """A task whose last evaluation may cost more than those during training (texts are generated and scored)."""

    def thorough(self) -> Task: ...


class WithParts(Protocol):
    """A task wrapper that trains something of its own (projections, group weights)."""

    parts: nn.Module


@runtime_checkable
class Exportable(Protocol):
    """A model whose forward is not yet tensors in, tensors out."""

    def exportable(self) -> nn.Module:
        """A module from tensors to tensors, equal to the model."""
        ...


@runtime_checkable
class Unfinished(Protocol):
    """An exportable form that ends before the model does: where its answers are chosen from many, say."""

    def finish(self, said: Any, *inputs: Tensor) -> Any:
        """The model's answer, from what this form said of the inputs. said: nested as `forward` gives it."""
        ...


@runtime_checkable
class Publishable(Protocol):
    """A model around one of a library that writes folders which it loads again (`save_pretrained`)."""

    def published(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """The library's model, and tensors of ours beside it (a head), by name."""
        ...


@runtime_checkable
class FromLibrary(Protocol):
    """A model around a library's architecture, whose published weights call their tensors otherwise."""

    architecture: str  # the library's name of it, as in Weights

    def own_names(self, names: Sequence[str]) -> dict[str, str]:
        """What this model calls tensors of published weights, or of another model of its kind, where it has them."""
        ...


@runtime_checkable
class Pretrained(Protocol):
    """A model made after a description that lies beside weights."""

    source: str  # of those weights: a transfer without `from` starts there
    files: dict[str, bytes]  # the description; kept beside the spec's files, where `build` looks for it first


Schedule = Callable[[float], float]  # position in [0, total_steps] -> factor on the learning rate


@dataclass(frozen=True)
class Weights:
    """Tensors to start from, where they came from (for the report), and where known their classes' names and the
    library's name of the architecture they belong to ("bert")."""

    tensors: dict[str, Tensor]
    origin: str
    labels: tuple[str, ...] = ()
    architecture: str = ""


class Tools(Protocol):
    """The only way up for a component: what a command lends it."""

    seed: int
    assets: Path | None  # the source run's assets folder: a tokenizer or id map there is used, never rebuilt

    def weights(self, source: str) -> Weights:
        """The weights a transfer source names: run:<id>, a file or folder, or a library's own."""
        ...


@dataclass
class Transferred:
    """A model fitted to its new task.

    loaded, missing, unexpected: names of tensors, for the report.
    frozen: prefixes of parameters that do not train, kept in eval mode.
    lr_scales: for each parameter prefix, longest match wins, a factor on the learning rate.
    unfreeze_at: for each parameter prefix, the fraction of training before which it stays still.
    head: name of the module that was replaced (or is to train alone).
    body: name of the module that the weights are of, where they are of a part: a detector's backbone.
    """

    model: nn.Module
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    frozen: tuple[str, ...] = ()
    lr_scales: dict[str, float] = field(default_factory=dict)
    unfreeze_at: dict[str, float] = field(default_factory=dict)
    head: str = ""
    body: str = ""
    cache_features: bool = False


@runtime_checkable
class Predictor(Protocol):
    """Turns examples into Outputs and owns its input pipeline: a trained model, an ensemble, a compressed model."""

    spec: DataSpec
    task: Task

    def predict_split(self, split: str) -> Outputs: ...

    def predict_rows(self, rows: Sequence[Row]) -> Outputs: ...


MicroBatches = Iterator[list[Batch]]


class Ensembler(Protocol):
    """A method of `dlrun ensemble`. Members' Outputs hold the same ids in the same order. A plan is JSON."""

    def fit(self, members: Sequence[Outputs], task: Task) -> dict[str, Any]:
        """What is learned from the members' outputs of the validation split, which hold the truth.

        members: empty where there is no such split. Raises: DlrunError for a method that needs one.
        """
        ...

    def held_out(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """What it says of those validation examples, each by a fit that did not see it, where that makes a
        difference; else as `combine`."""
        ...

    def combine(self, members: Sequence[Outputs], plan: Mapping[str, Any]) -> Outputs:
        """One for all. Needs no truth, and does not look at it."""
        ...


@runtime_checkable
class MixesWeights(Protocol):
    """A method whose members become one model."""

    def mix(
        self, members: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights, and the plan. score: how good weights are on the validation split, the more the better."""
        ...


@runtime_checkable
class OfCheckpoints(Protocol):
    """A method whose members are the last so many checkpoints of one run, rather than several runs."""

    checkpoints: int


@runtime_checkable
class TrainsMembers(Protocol):
    """A method that trains its members: with these overrides, one list a training."""

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """seed and duration: of the config that is varied."""
        ...


@runtime_checkable
class HoldsMembers(Protocol):
    """A model that is several, with common weights or each with its own, and says their mean."""

    members: int

    def member(self, index: int) -> nn.Module:
        """One of them, as a model by itself."""
        ...


@runtime_checkable
class InOneModel(Protocol):
    """A method whose members are parts of one model (HoldsMembers), which it trains."""

    members: int

    def trainings(self, seed: int, duration: str) -> list[list[str]]:
        """As TrainsMembers; there is one."""
        ...


@runtime_checkable
class DrawsDropout(Protocol):
    """A method whose members are draws of one model, with its dropout left on."""

    draws: int


class CompressionTools(Protocol):
    """What `dlrun compress` lends a method: the run's data, its training loop, its metrics, and a way to a teacher.

    source: the id of the run that is compressed, for messages.
    """

    seed: int
    spec: DataSpec
    task: Task  # of the run that is compressed
    device: torch.device
    source: str
    augments: bool  # whether training sees examples changed

    def batches(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        """Prepared, not augmented, on the device, in an order the seed gives; limit: examples, all unless set."""
        ...

    def finetune(
        self,
        model: nn.Module,
        duration: str,
        *,
        task: Task | None = None,
        lr_scale: float = 0.1,
        after_step: Callable[[int, int], None] | None = None,
    ) -> nn.Module:
        """Train with the loop, data, augmentation, optimizer and schedule of `train`; the model with its best weights.

        duration: as train.duration.   task: another than the run's (distillation).   lr_scale: on the run's rate.
        after_step: (step, total) after each update and before any evaluation; masks are put back there. It is called
            again for the step at which a fine-tuning that was killed goes on.
        """
        ...

    def score(self, model: nn.Module, split: str = "valid") -> dict[str, float]:
        """The task's metrics on a split, by name without the split's."""
        ...

    def predictor(self, reference: str) -> Predictor:
        """A teacher: the predictor of a run or an ensemble."""
        ...

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        """A student with fresh weights, from what a `model` group holds."""
        ...


class Compressor(Protocol):
    """A method of `dlrun compress`: one step of a stack.

    A plan is JSON; where it has "report", that is shown and goes into the result. Raises DlrunError (exit 2) from
    `compress`, before anything is trained, where the method cannot apply.
    """

    def compress(self, model: nn.Module, tools: CompressionTools) -> tuple[nn.Module, dict[str, Any]]:
        """The smaller model and the plan that rebuilds its module tree."""
        ...

    def reshape(self, model: nn.Module, plan: Mapping[str, Any], tools: CompressionTools | None) -> nn.Module:
        """The same module tree from the plan alone; weights are loaded into it afterwards."""
        ...


@runtime_checkable
class WithRequirements(Protocol):
    """A method of `dlrun compress` that cannot always begin."""

    def require_ready(self) -> None:
        """Before the first step of a stack. Raises: DlrunError where a package is missing or settings clash."""
        ...
