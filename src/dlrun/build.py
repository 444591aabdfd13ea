"""A config to objects: the one place that calls components' `build` functions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun import runs
from dlrun._build_compressed import require_plain
from dlrun.config import check, convert, schema
from dlrun.config.durations import Duration
from dlrun.contracts import (
    Augmentation,
    Compressor,
    Dataset,
    DataSpec,
    Inputs,
    Pretrained,
    Task,
    Transferred,
    Weights,
)
from dlrun.copies import Copies, kind_of
from dlrun.errors import DlrunError
from dlrun.registry import Registry
from dlrun.training import checkpoint
from dlrun.training.batches import chain
from dlrun.training.loop import Plan


@dataclass(frozen=True)
class RunTools:
    """What a command lends to a component (contracts.Tools)."""

    seed: int
    runs: Path
    registry: Registry
    assets: Path | None = None
    spec: DataSpec | None = None  # of the source run: its labels and statistics are used, never rebuilt

    def weights(self, source: str) -> Weights:
        """Tensors of run:<id>, of a file or folder, or of a library's own weights."""
        if not source.startswith("run:"):
            from dlrun.transfer import _sources

            return _sources.read(source)
        run = runs.find(self.runs, source.removeprefix("run:"))
        folder, _ = checkpoint.newest_valid(run.checkpoints, first="best")
        if folder is None:
            raise runs.without_weights(run)
        tensors = checkpoint.read_tensors(folder, "weights")
        if run.record.verb == "compress":
            require_plain(run, tensors, self._plain_tensors(run))
        labels = tuple(runs.read_json(run.folder / "spec.json")["labels"])
        if _adds_modules(check.read_plain(run.folder)["transfer"]["name"], self.registry):
            config, spec = check.read(run.folder, self.registry), DataSpec.load(run.folder)
            tensors = trained(config, self.registry, spec, tensors, str(folder)).state_dict()
        return Weights(tensors, f"run {run.short_id}, step {int(folder.name)}", labels)

    def _plain_tensors(self, run: runs.Run) -> dict[str, Tensor]:
        """Of the model that a run's config names, before any training."""
        config, spec = check.read(run.folder, self.registry), DataSpec.load(run.folder)
        return checkpoint.model_tensors(model(config.model, self.registry, spec, config.seed))


def dataset(config: schema.DataConfig, registry: Registry, tools: RunTools) -> Dataset:
    """The data of a run."""
    return registry.load("data", config.name).build(tools, **config.options)


class Datasets:
    """Keeps the data of the last run, for a process that trains several on the same."""

    def __init__(self) -> None:
        self._key, self._held = "", None

    def get(self, config: schema.DataConfig, registry: Registry, tools: RunTools) -> Dataset:
        """As `dataset`; decoded anew only where what decides its content differs."""
        key = json.dumps([config.name, config.options, tools.seed, str(tools.assets)], sort_keys=True, default=str)
        if self._held is None or key != self._key:
            self._held = None  # before the new one is read: both might not fit
            self._held, self._key = dataset(config, registry, tools), key
        return self._held


def inputs(config: schema.DataConfig, registry: Registry, spec: DataSpec) -> Inputs:
    """The input pipeline of a run, from its spec alone."""
    return registry.load("data", config.name).inputs(spec)


def augmentation(config: schema.DataConfig, registry: Registry, spec: DataSpec) -> Augmentation | None:
    """The training augmentations in their order, or None."""
    return chain([registry.load("augment", name).build(spec, **options) for name, options in config.augment.items()])


def task(config: schema.TaskConfig, registry: Registry, spec: DataSpec) -> Task:
    """The task of a run. Raises: DlrunError if the data does not fit it."""
    return registry.load("task", config.name).build(spec, **config.options)


def model(config: schema.ModelConfig, registry: Registry, spec: DataSpec, seed: int) -> nn.Module:
    """The model of a run, initialised by the seed alone; of several copies each by a seed of its own."""
    if config.copies > 1:
        alone = dataclasses.replace(config, copies=1)
        copies = [model(alone, registry, spec, seed + index) for index in range(config.copies)]
        return Copies(copies, kind_of(spec))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.load("model", config.name).build(spec, **config.options)


def transferred(
    config: schema.TransferConfig,
    registry: Registry,
    network: nn.Module,
    spec: DataSpec,
    tools: RunTools,
    *,
    load: bool = True,
) -> Transferred:
    """The model with its transfer applied; `load=False` (a resume) keeps the rules and reads no weights."""
    if config.name == "none":
        if config.source is not None or isinstance(network, Pretrained):
            what = "transfer.from is set" if config.source is not None else "the model is a pretrained one"
            raise DlrunError(
                f"{what}, and transfer=none uses no weights", "transfer=finetune, feature_extraction or lora"
            )
        return Transferred(network)
    source = config.source or (network.source if isinstance(network, Pretrained) else None)
    if source is None:
        raise DlrunError(
            f"transfer={config.name} needs weights to start from",
            "transfer.from=run:<id>, a file or folder, torchvision:resnet18 or hub:org/name",
        )
    lender: RunTools | _OwnWeights = tools if load else _OwnWeights(tools, network)
    return registry.load("transfer", config.name).build(network, spec, lender, source, **config.options)


def trained(
    config: schema.RunConfig, registry: Registry, spec: DataSpec, tensors: Mapping[str, Tensor], where: str
) -> nn.Module:
    """The model of a run with the weights of its checkpoint; modules that a transfer added are folded away."""
    network = model(config.model, registry, spec, config.seed)
    if not _adds_modules(config.transfer.name, registry):
        checkpoint.load_model(network, tensors, where)
        return network
    transfer = registry.load("transfer", config.transfer.name)
    network = transfer.reshape(network, **config.transfer.options)
    checkpoint.load_model(network, tensors, where)
    return transfer.merged(network)


def compressed(
    config: schema.RunConfig,
    registry: Registry,
    spec: DataSpec,
    plan: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    where: str,
) -> nn.Module:
    """The model of a compressed run: its architecture, reshaped by the steps of plan.json, then the weights.

    A step whose plan names a model (a student) begins anew from the config's.
    Raises: DlrunError for a plan that is not one of ours, or does not fit the weights.
    """
    steps = plan["steps"]
    first = 1 + max((index for index, step in enumerate(steps) if "model" in step["plan"]), default=-1)
    network = model(config.model, registry, spec, config.seed)
    for step in steps[first:]:
        given = {step["name"]: {"name": step["method"], **step["options"]}}
        method = convert.to_stack("compression", given, registry)[step["name"]]
        network = compressor(method, registry, spec).reshape(network, step["plan"], None)
    checkpoint.load_model(network, tensors, where)
    return network


def compressor(config: schema.CompressionConfig, registry: Registry, spec: DataSpec) -> Compressor:
    """The method of one step of a compression."""
    return registry.load("compression", config.name).build(spec, **config.options)


def _adds_modules(name: str, registry: Registry) -> bool:
    """Whether a transfer changes the tree of modules: its file then has `reshape`, which does that, and `merged`."""
    return name in registry.listing("transfer") and hasattr(registry.load("transfer", name), "reshape")


class _OwnWeights:
    """Tools whose weights are the model's own: the rules of a transfer, without its reading."""

    def __init__(self, tools: RunTools, network: nn.Module) -> None:
        self.seed, self.assets, self._network = tools.seed, tools.assets, network

    def weights(self, source: str) -> Weights:
        return Weights({name: tensor.clone() for name, tensor in self._network.state_dict().items()}, source)


@dataclass(frozen=True)
class Grouped:
    """An optimizer, and for each of its groups the factor on the learning rate over the run."""

    optimizer: torch.optim.Optimizer
    lr_scales: list[Callable[[float], float]]


def optimizer(
    config: schema.OptimizerConfig, registry: Registry, result: Transferred, parts: nn.Module | None
) -> Grouped:
    """The optimizer over parameter groups: norms and biases without decay, transfer's own rates."""
    named = [(name, p) for name, p in result.model.named_parameters() if p.requires_grad]
    named += [(f"parts.{name}", p) for name, p in parts.named_parameters()] if parts is not None else []
    if not named:
        raise DlrunError("nothing is left to train: every parameter is frozen", "choose another transfer")
    one_number_each = 2 if isinstance(result.model, Copies) else 1  # dimensions of a norm's weights, and of a bias
    grouped: dict[tuple[bool, float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        decays = config.decay_all or parameter.dim() > one_number_each
        key = (decays, _longest(result.lr_scales, name, 1.0), _longest(result.unfreeze_at, name, 0.0))
        grouped.setdefault(key, []).append((name, parameter))
    groups = [
        {"params": members} | ({} if decays else {"weight_decay": 0.0}) for (decays, _, _), members in grouped.items()
    ]
    made = registry.load("optimizer", config.name).build(groups, **config.options)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return Grouped(made, [_scale(rate, start) for _, rate, start in grouped])


def _longest(by_prefix: dict[str, float], name: str, otherwise: float) -> float:
    fits = [prefix for prefix in by_prefix if name == prefix or name.startswith(prefix + ".")]
    return by_prefix[max(fits, key=len)] if fits else otherwise


def _scale(rate: float, start: float) -> Callable[[float], float]:
    return lambda fraction: rate if fraction >= start else 0.0


def plan(config: schema.TrainConfig, steps_per_epoch: int) -> Plan:
    """A run's durations in steps (or its time limit)."""
    timed = config.duration.unit == "seconds"
    if config.duration.unit == "percent":
        raise DlrunError("train.duration: a percentage of what?", 'write epochs, steps or minutes: "20 epochs"')
    total = None if timed else config.duration.steps(per_epoch=steps_per_epoch)
    if config.duration.value == 0:
        raise DlrunError(f"train.duration: '{config.duration}' is no training", 'e.g. train.duration="1 epoch"')

    def every(duration: Duration) -> int:
        return max(1, duration.steps(per_epoch=steps_per_epoch, total=total))

    return Plan(
        total,
        config.duration.value if timed else None,
        every(config.evaluate_every),
        every(config.save_every),
        config.log_every,
        config.patience,
        config.min_improvement,
        config.clip_norm,
        config.clip_value,
    )


_TIMED_RESOLUTION = 10_000  # positions of a schedule where the number of steps is not known


def schedule(
    config: schema.ScheduleConfig, registry: Registry, plan: Plan, steps_per_epoch: int
) -> Callable[[float], float]:
    """Fraction of the run -> factor on the learning rate: linear warm-up, then the schedule over the rest."""
    total = plan.total or _TIMED_RESOLUTION
    warmup = _warmup_steps(config.warmup, plan, total, steps_per_epoch)
    rest = registry.load("schedule", config.name).build(max(1, total - warmup), **config.options)

    def factor(fraction: float) -> float:
        position = round(fraction * total, 6)
        return (position + 1) / (warmup + 1) * rest(0.0) if position < warmup else rest(position - warmup)

    return factor


def _warmup_steps(warmup: Duration, plan: Plan, total: int, steps_per_epoch: int) -> int:
    if plan.seconds is not None:
        if warmup.value and warmup.unit not in ("seconds", "percent"):
            raise DlrunError(
                f"schedule.warmup: '{warmup}' in a run that is limited by time", 'write "5 %" or "30 seconds"'
            )
        share = warmup.value / (plan.seconds if warmup.unit == "seconds" else 100)
        steps = round(share * total)
    else:
        steps = warmup.steps(per_epoch=steps_per_epoch, total=total)
    if steps >= total:
        raise DlrunError(f"schedule.warmup: '{warmup}' is not shorter than the run of {total} steps", 'e.g. "5 %"')
    return steps


def for_features(spec: DataSpec, width: Sequence[int]) -> DataSpec:
    """The spec of data whose pictures (or texts …) were turned into a frozen body's features."""
    return dataclasses.replace(spec, inputs=("features",), shapes={"features": tuple(width)})
