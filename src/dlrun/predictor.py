"""A run to a predictor: examples in, Outputs out, with the input pipeline the run was trained with."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from dlrun import build, runs
from dlrun.config import check
from dlrun.config.schema import RunConfig
from dlrun.contracts import Batch, Dataset, DataSpec, Inputs, Outputs, Row, Task
from dlrun.decoding import Converses, Generates, ModelDecoder
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry
from dlrun.training import checkpoint
from dlrun.training.batches import placer
from dlrun.training.distributed import World, choose_device
from dlrun.training.evaluate import batches, evaluate, outputs_of, thorough
from dlrun.training.precision import Precision


@runtime_checkable
class Recommends(Protocol):
    """A task that says a number of items to each user."""

    def recommending(self, top_k: int) -> Self:
        """The same task, with so many items."""
        ...


@dataclass
class TrainedModel:
    """The predictor of one trained run."""

    run: runs.Run
    config: RunConfig
    registry: Registry
    spec: DataSpec
    task: Task
    model: nn.Module
    inputs: Inputs
    device: torch.device
    step: int
    warnings: list[str] = field(default_factory=list)
    _dataset: Dataset | None = None

    @property
    def dataset(self) -> Dataset:
        """The run's data, loaded when it is first asked for."""
        if self._dataset is None:
            tools = build.RunTools(
                self.config.seed, self.run.folder.parents[1], self.registry, self.run.folder / "assets", self.spec
            )
            self._dataset = build.dataset(self.config.data, self.registry, tools)
        return self._dataset

    def predict_split(self, split: str) -> Outputs:
        """Outputs of a whole split, in order of id."""
        stream = self._batches(split)
        parts = list(outputs_of(self.model, self.task, stream, self._precision))
        if not parts:
            raise DlrunError(f"the {split} split is empty", code=Exit.DATA)
        return Outputs.concatenate(parts).by_id()

    def evaluate(self, split: str) -> dict[str, float]:
        """The task's metrics on a split."""
        return evaluate(self.model, self.task, self._batches(split), self._precision, World(0, 1, self.device))

    def predict_rows(self, rows: Sequence[Row]) -> Outputs:
        """Outputs of new rows; ids are their positions."""
        parts = []
        size = 2 * self.config.data.batch_size
        for start in range(0, len(rows), size):
            batch = self.inputs.encode(rows[start : start + size])
            batch = {**batch, "id": torch.arange(start, start + len(rows[start : start + size]))}
            stream = iter([self.inputs.prepare(self._place(batch))])
            parts += list(outputs_of(self.model, self.task, stream, self._precision))
        if not parts:
            raise DlrunError("there is nothing to predict: no rows were given")
        return Outputs.concatenate(parts)

    def predict_changed(self, split: str, rows_N: Tensor, change: Callable[[Batch], Batch]) -> Outputs:
        """Outputs of these rows of a split, in order of id, after `change` has made other stored fields of theirs."""
        batch = change(self.dataset.split(split).gather(rows_N))
        size = 2 * self.config.data.batch_size
        pieces = (
            {name: field[start : start + size] for name, field in batch.items()}
            for start in range(0, len(batch["id"]), size)
        )
        stream = (self.inputs.prepare(self._place(piece)) for piece in pieces)
        said = Outputs.concatenate(list(outputs_of(self.model, self.task, stream, self._precision))).by_id()
        return Outputs(said.ids.cpu(), {name: field.cpu() for name, field in said.fields.items()})

    # ---------------------------------------------------------------- saying texts

    def change_generation(self, **given: Any) -> None:
        """From now on say texts with these settings of decoding.Generation, those that are not None; of a run that
        recommends, top_k is how many items.

        Raises: DlrunError for a run that says no texts.
        """
        given = {name: value for name, value in given.items() if value is not None}
        if given.keys() == {"top_k"} and isinstance(self.task, Recommends):
            self.task = self.task.recommending(given["top_k"])
        elif given:
            task: Any = self._saying()
            task.generation = task.generation.but(**given)

    def generate(self, texts: Sequence[str]) -> list[str]:
        """What the run's model says to each text. Raises: DlrunError for a run that says no texts."""
        task, said = self._saying(), []
        size = 2 * self.config.data.batch_size
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            batch = task.prompts(part, self.inputs.encode) | {"id": torch.arange(start, start + len(part))}
            batch = self.inputs.prepare(self._place(batch))
            with self._precision.autocast():
                said += task.generate(ModelDecoder(self.model), batch, task.generation)
        return said

    def fitting(self, messages: Sequence[Row]) -> list[Row]:
        """What of a conversation a model reads. Raises: DlrunError for a run that holds none."""
        task = self._conversing()
        return task.fitting(messages, task.generation)

    def reply(self, messages: Sequence[Row]) -> Generator[str, None, None]:
        """An answer to a conversation ({"role", "content"} each), in pieces as they are said."""
        task = self._conversing()
        batch = self.inputs.encode([{"messages": list(messages)}]) | {"id": torch.tensor([len(messages)])}
        batch = self.inputs.prepare(self._place(batch))
        with (
            self._precision.autocast(),
            contextlib.closing(task.reply(ModelDecoder(self.model), batch, task.generation)) as pieces,
        ):
            yield from pieces

    def _saying(self) -> Generates:
        if isinstance(self.task, Generates):
            return self.task
        raise DlrunError(
            f"run {self.run.short_id} says no texts: its task is {self.config.task.name}",
            f"give it files: dlrun predict {self.run.short_id} FILE",
        )

    def _conversing(self) -> Converses:
        if isinstance(self.task, Converses):
            return self.task
        raise DlrunError(
            f"run {self.run.short_id} holds no conversations: its task is {self.config.task.name}",
            f"dlrun predict {self.run.short_id} --prompt TEXT, or train one: dlrun train task=chat data=chat",
        )

    @property
    def _precision(self) -> Precision:
        return Precision.of(self.config.train.precision, self.device)

    def _place(self, batch):
        return placer(self.device, self.config.hardware.channels_last)(batch)

    def _batches(self, split: str):
        return batches(
            self.dataset.split(split),
            self.inputs,
            batch_size=2 * self.config.data.batch_size,
            place=placer(self.device, self.config.hardware.channels_last),
        )


def load(
    folder: Path,
    device: str | None = None,
    registry: Registry | None = None,
    config: RunConfig | None = None,
    step: int | None = None,
) -> TrainedModel:
    """The predictor of a run folder, with its best checkpoint; of an ensemble, all its members.

    config: the run's own unless a command changed some of it (other data, say).   step: of another checkpoint.
    Raises: DlrunError for a config that is not legal, a damaged checkpoint, a run without one.
    """
    registry = registry or Registry(_components(folder))
    run = runs.load(folder)
    config = config or check.read(folder, registry)
    if run.record.verb == "ensemble" and not run.checkpoints.is_dir():
        from dlrun import _predictor_ensemble

        return _predictor_ensemble.load(run, device, registry, config)
    found, warnings = _checkpoint(run, step)
    spec = DataSpec.load(folder)
    chosen = choose_device(device or config.hardware.device)
    network = _network(run, config, registry, spec, found)
    if config.hardware.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.to(chosen).eval()
    return TrainedModel(
        run,
        config,
        registry,
        spec,
        thorough(build.task(config.task, registry, spec)),
        network,
        build.inputs(config.data, registry, spec),
        chosen,
        int(found.name),
        warnings,
    )


def _network(run: runs.Run, config: RunConfig, registry: Registry, spec: DataSpec, found: Path) -> nn.Module:
    """The model of a run with the weights of this checkpoint, in the shape that a compression gave it."""
    tensors = checkpoint.read_tensors(found, "weights")
    if run.record.verb != "compress":
        return build.trained(config, registry, spec, tensors, str(found))
    path = run.folder / "plan.json"
    digest = checkpoint.read_state(found).get("plan")
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DlrunError(f"{path}: is not the plan these weights were saved with", "restore the file", Exit.DATA)
    return build.compressed(config, registry, spec, runs.read_json(path), tensors, str(found))


def _checkpoint(run: runs.Run, step: int | None) -> tuple[Path, list[str]]:
    """The best checkpoint and warnings of damaged ones, or that of a step."""
    if step is None:
        found, warnings = checkpoint.newest_valid(run.checkpoints, first="best")
        if found is None:
            raise runs.without_weights(run)
        return found, warnings
    path = run.checkpoints / f"{step:08d}"
    if not path.is_dir():
        known = ", ".join(str(number) for number in checkpoint.steps(run.checkpoints)) or "none"
        raise DlrunError(f"run {run.short_id} has no checkpoint of step {step}; it has {known}")
    if bad := checkpoint.damage(path):
        raise DlrunError(f"checkpoint {path.name} is damaged: {path / bad}", code=Exit.DATA)
    return path, []


def weights_digest(folder: Path, step: int | None = None) -> bytes:
    """What changes when a predictor's weights do: a checkpoint's manifest; of an ensemble, its plan and its members'.

    Reads no weights but to verify them. Raises: DlrunError as `load`.
    """
    run = runs.load(folder)
    if run.record.verb == "ensemble" and not run.checkpoints.is_dir():
        from dlrun import _predictor_ensemble

        return _predictor_ensemble.digest(run)
    return (_checkpoint(run, step)[0] / checkpoint.MANIFEST).read_bytes()


def _components(folder: Path) -> Path | None:
    """The user's components as any command finds them; never those copied into a run."""
    from dlrun.registry import components_folder

    return components_folder()
