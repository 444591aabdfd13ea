"""An ensemble to a predictor: its members' predictors, and the method that makes one of what they say.

plan.json of an ensemble's run: {"method": the group's settings, "kind": outputs | dropout | parts | tokens | weights,
"members": [{"run": id, "step": of a checkpoint or null}], "fit": what the method learned, "temperature": learned on
the validation split or null}. An ensemble of kind weights is one model, and is read as any run is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun import predictor, runs
from dlrun._decoding_average import AverageModel
from dlrun.config import check, convert
from dlrun.config.schema import EnsembleConfig, RunConfig
from dlrun.contracts import Batch, DataSpec, HoldsMembers, Outputs, Row
from dlrun.ensembles import _calibration, _fields
from dlrun.errors import DlrunError, Exit
from dlrun.metrics.scoring import scores
from dlrun.predictor import TrainedModel
from dlrun.registry import Registry
from dlrun.training.distributed import choose_device

PLAN = "plan.json"


def read_plan(run: runs.Run) -> dict[str, Any]:
    """plan.json. Raises: DlrunError for an ensemble that never got so far."""
    if not (run.folder / PLAN).exists():
        raise DlrunError(f"ensemble {run.short_id} was stopped before it had a plan", "make it anew", Exit.DATA)
    return runs.read_json(run.folder / PLAN)


def method_of(settings: EnsembleConfig, registry: Registry, spec: DataSpec) -> Any:
    """The method of these settings: an Ensembler or a MixesWeights."""
    return registry.load("ensemble", settings.name).build(spec, **settings.options)


def member_folder(run: runs.Run, member: Mapping[str, Any]) -> Path:
    """The folder of a member. Raises: DlrunError where it is gone."""
    folder = run.folder.parents[1] / str(member["run"]) / "artifacts"
    if not (folder / "run.json").exists():
        raise DlrunError(
            f"ensemble {run.short_id}: its member {str(member['run'])[:8]} is gone: {folder}",
            "restore the run, or make the ensemble anew",
            Exit.DATA,
        )
    return folder


def digest(run: runs.Run) -> bytes:
    """See predictor.weights_digest."""
    plan = read_plan(run)
    parts = [(run.folder / PLAN).read_bytes()]
    parts += [predictor.weights_digest(member_folder(run, each), each["step"]) for each in plan["members"]]
    return b"\0".join(hashlib.sha256(part).digest() for part in parts)


def load(run: runs.Run, device: str | None, registry: Registry, config: RunConfig) -> TrainedModel:
    """The predictor of an ensemble's run.

    config: the run's own, or with other data, which every member then gets.
    """
    plan = read_plan(run)
    settings = convert.to_verb("ensemble", plan["method"], registry)
    stored = check.read(run.folder, registry)
    changed = {
        name: getattr(config, name) for name in ("data", "task") if getattr(config, name) != getattr(stored, name)
    }
    members = []
    for each in plan["members"]:
        folder = member_folder(run, each)
        own = replace(check.read(folder, registry), **changed)
        members.append(predictor.load(folder, device or config.hardware.device, registry, own, each["step"]))
    first = members[0]
    method = method_of(settings, registry, first.spec)
    if plan["kind"] == "tokens":
        model = AverageModel([member.model for member in members], method.mean.of)
        return replace(first, run=run, config=config, model=model, step=0)
    if plan["kind"] == "dropout":
        members = draws(first, method.draws, settings.seed)
    temperature = plan["temperature"] if settings.calibrate else None
    return together(run, config, registry, members, method, plan["fit"], temperature)


def together(
    run: runs.Run,
    config: RunConfig,
    registry: Registry,
    members: Sequence[TrainedModel],
    method: Any,
    fit: Mapping[str, Any],
    temperature: float | None,
) -> Ensemble:
    """Members and a method that was fitted to them as a predictor."""
    first = members[0]
    warnings = [line for member in members for line in member.warnings]
    return Ensemble(
        run, config, registry, first.spec, first.task, Together([member.model for member in members]), first.inputs,
        choose_device(str(first.device.type)), 0, warnings, None, list(members), method, dict(fit), temperature,
    )  # fmt: skip


class Together(nn.Module):
    """The members' models, to be counted; what they say is combined after each has said it."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(list(dict.fromkeys(models)))

    def forward(self, *inputs: Any) -> Any:
        """Raises: DlrunError, always."""
        raise DlrunError(
            "an ensemble of predictions is no single model",
            "make one of it: dlrun compress ENSEMBLE compression=distill, or ensemble=soup",
        )


@dataclass
class Ensemble(TrainedModel):
    """The predictor of an ensemble whose members' predictions are combined, by id."""

    members: list[TrainedModel] = field(default_factory=list)
    method: Any = None
    fit: dict[str, Any] = field(default_factory=dict)
    temperature: float | None = None

    @property
    def dataset(self):
        """The first member's."""
        return self.members[0].dataset

    def predict_split(self, split: str) -> Outputs:
        """See Predictor."""
        return self._combined([member.predict_split(split) for member in self.members])

    def predict_rows(self, rows: Sequence[Row]) -> Outputs:
        """See Predictor."""
        return self._combined([member.predict_rows(rows) for member in self.members])

    def predict_changed(self, split: str, rows_N: Tensor, change: Callable[[Batch], Batch]) -> Outputs:
        """See TrainedModel."""
        return self._combined([member.predict_changed(split, rows_N, change) for member in self.members])

    def evaluate(self, split: str) -> dict[str, float]:
        """The task's metrics on a split."""
        return scores(self.task, self.predict_split(split))

    def _combined(self, outputs: Sequence[Outputs]) -> Outputs:
        names = [f"run {member.run.short_id}" for member in self.members]
        on_cpu = [
            Outputs(each.ids.cpu(), {name: value.cpu() for name, value in each.fields.items()}) for each in outputs
        ]
        said = _fields.best_anew(self.method.combine(_fields.aligned(on_cpu, names), self.fit))
        return _calibration.tempered(said, self.temperature)


# ---------------------------------------------------------------- members of one model


def parts(member: TrainedModel) -> list[TrainedModel]:
    """The predictors of the members that share the weights of one model.

    Raises: DlrunError for a model without such.
    """
    model = member.model
    if not isinstance(model, HoldsMembers):
        raise DlrunError(
            f"ensemble: the model of run {member.run.short_id} has no members", "train one that has: model.members=4"
        )
    _ = member.dataset  # loaded once, for all
    return [replace(member, model=model.member(index).eval()) for index in range(model.members)]


# ---------------------------------------------------------------- draws of one model


def draws(member: TrainedModel, count: int, seed: int) -> list[TrainedModel]:
    """So many predictors of one model, each with its dropout on and draws of its own.

    Raises: DlrunError for a model without dropout.
    """
    if not _dropouts(member.model):
        raise DlrunError(
            f"ensemble=mc_dropout: the model of run {member.run.short_id} has no dropout",
            "train one that has: model.dropout=0.2",
        )
    facts = {name: getattr(member, name) for name in TrainedModel.__dataclass_fields__ if name != "_dataset"}
    made = [Draw(**facts, seed=seed * 1_000_003 + index) for index in range(count)]
    for each in made[1:]:
        each.shared = made[0]
    return list(made)


def _dropouts(model: nn.Module) -> list[nn.Module]:
    """The modules that drop something while they train."""
    found = []
    for module in model.modules():
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            found.append(module)
    return found


@dataclass
class Draw(TrainedModel):
    """A model whose dropout stays on; the same draw each time it is asked."""

    seed: int = 0
    shared: TrainedModel | None = None  # who has the data

    @property
    def dataset(self):
        """That of the first draw."""
        return super().dataset if self.shared is None else self.shared.dataset

    def predict_split(self, split: str) -> Outputs:
        """See Predictor."""
        with self._drawing():
            return super().predict_split(split)

    def predict_rows(self, rows: Sequence[Row]) -> Outputs:
        """See Predictor."""
        with self._drawing():
            return super().predict_rows(rows)

    def predict_changed(self, split: str, rows_N: Tensor, change: Callable[[Batch], Batch]) -> Outputs:
        """See TrainedModel."""
        with self._drawing():
            return super().predict_changed(split, rows_N, change)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Dropout on, and its random numbers those of this draw."""
        modules = _dropouts(self.model)
        devices = [self.device] if self.device.type == "cuda" else []
        for module in modules:
            module.train()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign] - eval() passes by
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed)
                yield
        finally:
            for module in modules:
                del module.train
                module.eval()
