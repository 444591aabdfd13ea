"""A run to a predictor: examples in, Outputs out, with the input pipeline the run was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dlrun import build, runs
from dlrun.config import check
from dlrun.config.schema import RunConfig
from dlrun.contracts import Dataset, DataSpec, Inputs, Outputs, Row, Task
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry
from dlrun.training import checkpoint
from dlrun.training.batches import placer
from dlrun.training.distributed import World, choose_device
from dlrun.training.evaluate import batches, evaluate, outputs_of
from dlrun.training.precision import Precision


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
    folder: Path, device: str | None = None, registry: Registry | None = None, config: RunConfig | None = None
) -> TrainedModel:
    """The predictor of a run folder, with its best checkpoint.

    config: the run's own unless a command changed some of it (other data, say).
    Raises: DlrunError for a config that is not legal, a damaged checkpoint, a run without one.
    """
    registry = registry or Registry(_components(folder))
    run = runs.load(folder)
    config = config or check.read(folder, registry)
    found, warnings = checkpoint.newest_valid(run.checkpoints, first="best")
    if found is None:
        raise DlrunError(
            f"run {run.short_id} has no checkpoint: it never saved one", "train it: dlrun train", Exit.DATA
        )
    spec = DataSpec.load(folder)
    chosen = choose_device(device or config.hardware.device)
    network = build.model(config.model, registry, spec, config.seed)
    checkpoint.load_model(network, checkpoint.read_tensors(found, "weights"), str(found))
    if config.hardware.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.to(chosen).eval()
    return TrainedModel(
        run,
        config,
        registry,
        spec,
        build.task(config.task, registry, spec),
        network,
        build.inputs(config.data, registry, spec),
        chosen,
        int(found.name),
        warnings,
    )


def _components(folder: Path) -> Path | None:
    """The user's components as any command finds them; never those copied into a run."""
    from dlrun.registry import components_folder

    return components_folder()
