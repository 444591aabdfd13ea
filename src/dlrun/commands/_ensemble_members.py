"""Who is in an ensemble: runs, children of a parent, the best of a sweep, checkpoints; and whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dlrun import predictor, runs
from dlrun.commands import _reading as reading
from dlrun.commands._predictions import Predicted, Source, predicted
from dlrun.config import check, convert
from dlrun.config.compose import leaves
from dlrun.contracts import DataSpec, Outputs, Task
from dlrun.errors import DlrunError, Exit
from dlrun.predictor import TrainedModel
from dlrun.training import checkpoint
from dlrun.training.evaluate import thorough

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_ITEMS = "ids.json"  # among the files of a recommender's spec


@dataclass
class Member:
    """A run, or one of its checkpoints; its model is loaded when it is first asked for."""

    run: runs.Run
    step: int | None
    source: Source
    task: Task

    @property
    def name(self) -> str:
        """What it is called in sentences."""
        return f"run {self.short}"

    @property
    def short(self) -> str:
        """What it is called in tables."""
        return self.run.short_id if self.step is None else f"{self.run.short_id}@{self.step}"

    @property
    def spec(self) -> DataSpec:
        return self.source.spec

    @property
    def parameters(self) -> int:
        """As the run counted them; counted anew where it did not say."""
        counted = reading.result_of(self.run).get("parameters")
        return counted or sum(p.numel() for p in self.source.open().model.parameters())


def references(given: Sequence[str], options: Options, top: int | None) -> list[tuple[runs.Run, int | None]]:
    """The runs that these words name, each with the step of a checkpoint (RUN@STEP) or None.

    top: of a sweep, its best so many. Raises: DlrunError for --top without a sweep, a sweep whose weights are gone.
    """
    found: list[tuple[runs.Run, int | None]] = []
    is_sweep = False
    for word in given:
        name, _, step = word.rpartition("@")
        if name and step.isdigit():
            found.append((runs.find(options.runs, name), int(step)))
            continue
        run = runs.find(options.runs, word)
        if run.record.verb == "sweep":
            is_sweep = True
            found += [(child, None) for child in _best(run, options, top)]
        elif run.record.verb == "seeds":
            found += [(child, None) for child in _children(run, options)]
        else:
            found.append((reading.model_run(run), None))
    if top is not None and not is_sweep:
        raise DlrunError("--top goes with a sweep, and no sweep is named", "dlrun ensemble SWEEP --top 5")
    return found


def _best(run: runs.Run, options: Options, top: int | None) -> list[runs.Run]:
    from dlrun.commands import sweep
    from dlrun.commands._sweep_plan import Plan

    return sweep.top(run, options.runs, top or Plan.read(run.folder).search.keep)


def _children(run: runs.Run, options: Options) -> list[runs.Run]:
    children = [runs.find(options.runs, child) for child in run.record.children]
    unfinished = [child.short_id for child in children if child.status != "FINISHED"]
    if unfinished or not children:
        raise DlrunError(
            f"run {run.short_id} is not finished: {', '.join(unfinished) or 'it has no children'}",
            f"dlrun train --resume {run.short_id}, or name those that are",
        )
    return children


def checkpoints_of(run: runs.Run, last: int) -> list[tuple[runs.Run, int | None]]:
    """The last so many checkpoints of a run, or all if there are fewer. Raises: DlrunError for fewer than two."""
    steps = checkpoint.steps(run.checkpoints)
    if len(steps) < 2:
        raise DlrunError(
            f"run {run.short_id} has {len(steps)} checkpoint(s), and several are needed",
            'train it with train.keep=5 train.save_every="1 epoch"',
        )
    return [(run, step) for step in steps[-last:]]


def along_one_run(
    found: Sequence[tuple[runs.Run, int | None]], method: str, last: int
) -> Sequence[tuple[runs.Run, int | None]]:
    """The checkpoints that were named, else the last so many of the run. Raises: DlrunError for several runs."""
    run = found[0][0]
    several = {each.id for each, _ in found}
    if len(several) > 1:
        raise DlrunError(
            f"ensemble={method} averages checkpoints along one run, and {len(several)} runs are named",
            f"dlrun ensemble {run.short_id} ensemble={method}, or average the runs: ensemble=soup",
        )
    return checkpoints_of(run, last) if all(step is None for _, step in found) else found


def opened(
    found: Sequence[tuple[runs.Run, int | None]], options: Options, reporter: Any, device: str | None
) -> list[Member]:
    """Members of these runs, without their models. Raises: DlrunError for a run without weights."""
    from dlrun import build
    from dlrun.commands.train import warn_if_components_differ

    members = []
    for run, step in found:
        warn_if_components_differ(run, options.registry, reporter)
        if not (run.folder / "spec.json").exists():
            raise runs.without_weights(run)
        config, spec = check.read(run.folder, options.registry), DataSpec.load(run.folder)
        weights = predictor.weights_digest(run.folder, step)
        source = Source(run.folder, config, spec, weights, _Opening(run, step, options, device))
        task = thorough(build.task(config.task, options.registry, spec))
        members.append(Member(run, step, source, task))
    return members


@dataclass
class _Opening:
    """Loads a member's predictor once."""

    run: runs.Run
    step: int | None
    options: Options
    device: str | None
    loaded: TrainedModel | None = None

    def __call__(self) -> TrainedModel:
        if self.loaded is None:
            self.loaded = predictor.load(self.run.folder, self.device, self.options.registry, step=self.step)
        return self.loaded


# ---------------------------------------------------------------- do they fit together


def require_alike(members: Sequence[Member]) -> None:
    """Raises: DlrunError naming two members that do not learn the same."""
    first = members[0]
    for member in members[1:]:
        pair = f"{first.name} and {member.name}"
        names = [each.source.config.task.name for each in (first, member)]
        if names[0] != names[1]:
            raise DlrunError(f"{pair} do not learn the same: {names[0]} and {names[1]}", "name runs of one task")
        if sorted(first.spec.labels) == sorted(member.spec.labels) and first.spec.labels != member.spec.labels:
            raise DlrunError(f"{pair} have the same classes in another order", "train them on the same data")
        if first.spec.labels != member.spec.labels:
            raise DlrunError(f"{pair} have different classes: {_difference(first.spec, member.spec)}")
        sizes = [[each.spec.sizes.get(name) for name in ("classes", "labels", "targets")] for each in (first, member)]
        if sizes[0] != sizes[1]:
            raise DlrunError(f"{pair} do not predict the same: {first.spec.sizes} and {member.spec.sizes}")
        if first.spec.files.get(_ITEMS) != member.spec.files.get(_ITEMS):
            raise DlrunError(f"{pair} do not know the same users and items", "train them on the same data")


def _difference(first: DataSpec, other: DataSpec) -> str:
    only = [label for label in first.labels if label not in other.labels]
    only = only or [label for label in other.labels if label not in first.labels]
    return f"'{only[0]}' is one of {len(first.labels)} and {len(other.labels)}" if only else "in number"


def require_one_model(members: Sequence[Member]) -> None:
    """Raises: DlrunError naming two members whose weights cannot be averaged."""
    first = members[0]
    for member in members:
        if member.run.record.verb == "compress":
            raise DlrunError(
                f"{member.name} was compressed, and its weights cannot be averaged", "average before you compress"
            )
        if member.run.record.verb == "ensemble" and not member.run.checkpoints.is_dir():
            raise DlrunError(
                f"{member.name} is an ensemble of predictions, and has no weights that could be averaged",
                "name its members instead, or use ensemble=average, which averages predictions",
            )
        if member.source.config.model != first.source.config.model:
            raise DlrunError(
                f"{first.name} and {member.name} are different models ({_models(first, member)}): their weights cannot"
                " be averaged",
                "use ensemble=average, which averages predictions",
            )


def _models(first: Member, other: Member) -> str:
    """The names of two models; of one kind in two forms, the first setting that differs."""
    one, two = (leaves(convert.to_plain(each.source.config.model)) for each in (first, other))
    if one["name"] != two["name"]:
        return f"{one['name']}, {two['name']}"
    name = next(name for name in one | two if one.get(name) != two.get(name))
    return f"{one['name']} with model.{name}={one.get(name)} and {two.get(name)}"


def predict(members: Sequence[Member], split: str, reporter: Any) -> list[Predicted] | None:
    """Every member's predictions of a split, in ascending order of id; None where the data has no such split.

    Raises: DlrunError for members that held out different rows of it.
    """
    found: list[Predicted] = []
    for member in members:
        try:
            made = predicted(member.source, split, reporter)
        except DlrunError as error:
            if not found and f"has no '{split}' split" in error.message:
                return None
            raise
        found.append(made._replace(outputs=made.outputs.by_id()))
        if not _same_rows(found[0].outputs, found[-1].outputs):
            raise DlrunError(
                f"{members[0].name} and {member.name} do not have the same {split} split",
                "train them on the same data with the same split: data.split_seed=0",
                Exit.USAGE,
            )
    return found


def _same_rows(first: Outputs, other: Outputs) -> bool:
    from dlrun.ensembles import _fields

    if not torch.equal(first.ids, other.ids):
        return False
    try:
        truth = _fields.form_of(first).truth
    except DlrunError:
        return True  # of texts only sums are there
    return truth not in first.fields or (
        first.fields[truth].shape == other.fields[truth].shape and torch.equal(first.fields[truth], other.fields[truth])
    )
