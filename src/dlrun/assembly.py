"""A config to all the parts of a run, put together: what `fit` needs and nothing started yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dlrun import build, runs
from dlrun.config.schema import RunConfig
from dlrun.contracts import Dataset, Pretrained, Task, Transferred
from dlrun.copies import EachCopy
from dlrun.registry import Registry
from dlrun.training import features
from dlrun.training.batches import Feed, placer
from dlrun.training.bootstrap import resampled
from dlrun.training.distributed import World
from dlrun.training.loop import Plan, Reporter
from dlrun.training.precision import Precision
from dlrun.training.state import Progress, State, averaged


class Parts:
    """What a sitting is put together from. `trained` is the module whose parameters move (a head, where a frozen
    body's features are cached); `task` is its task; `full_task` is the whole model's."""

    dataset: Dataset
    task: Task
    full_task: Task
    state: State
    feed: Feed
    plan: Plan
    schedule: Callable[[float], float]
    forward: nn.Module
    trained: nn.Module
    transferred: Transferred
    lr_scales: list[Callable[[float], float]]


def assemble(
    config: RunConfig,
    registry: Registry,
    world: World,
    folder: Path,
    resumed: Path | None,
    datasets: build.Datasets | None = None,
) -> Parts:
    """Build everything a run needs from its config. Order: data, task, model, transfer, optimizer, plan."""
    parts = Parts()
    tools = build.RunTools(config.seed, folder, registry, _assets(config, folder, resumed))
    parts.dataset = data = (datasets or build.Datasets()).get(config.data, registry, tools)
    parts.task = parts.full_task = build.task(config.task, registry, data.spec)
    if config.model.copies > 1:
        parts.task = EachCopy(parts.task, config.model.copies)
    network = build.model(config.model, registry, data.spec, config.seed)
    if isinstance(network, Pretrained):
        parts.dataset = data = replace(data, spec=replace(data.spec, files=data.spec.files | network.files))
    parts.transferred = build.transferred(config.transfer, registry, network, data.spec, tools, load=resumed is None)
    network = parts.transferred.model
    keep_in_eval_mode(network, parts.transferred.frozen)
    if config.hardware.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.to(world.device)
    precision = Precision.of(config.train.precision, world.device)
    own = getattr(parts.task, "parts", None)
    grouped = build.optimizer(config.optimizer, registry, parts.transferred, own)
    parts.lr_scales = grouped.lr_scales
    parts.state = State(
        network, grouped.optimizer, precision, averaged(network, config.train.ema), own, Progress(), world
    )
    parts.feed = Feed(
        resampled(data.split("train"), config.data.bootstrap),
        data.inputs,
        build.augmentation(config.data, registry, data.spec),
        config.data.batch_size,
        config.train.accumulate,
        config.seed,
        config.data.workers,
        world,
        placer(world.device, config.hardware.channels_last),
        config.train.overfit_one_batch,
    )
    parts.trained = network
    if parts.transferred.cache_features and parts.feed.augment is None:
        _train_on_features(parts, config, registry)
    parts.plan = build.plan(config.train, parts.feed.steps_per_epoch)
    parts.schedule = build.schedule(config.schedule, registry, parts.plan, parts.feed.steps_per_epoch)
    parts.forward = wrapped(parts.trained, config, world)
    return parts


def _assets(config: RunConfig, folder: Path, resumed: Path | None) -> Path | None:
    """Where a vocabulary lies that is not to be made anew: with the run that goes on, or with the one to start from.

    folder: the runs.   resumed: the checkpoint to go on from.
    """
    source = config.transfer.source or ""
    if resumed is not None:
        found = resumed.parents[1] / "assets"
    elif source.startswith("run:"):
        found = runs.find(folder, source.removeprefix("run:")).folder / "assets"
    else:
        return None
    return found if found.is_dir() else None


def keep_in_eval_mode(network: nn.Module, prefixes: Sequence[str]) -> None:
    """Modules of these names no longer follow `train()`: the statistics of a frozen body's norms stay still."""
    for name, module in network.named_modules():
        if name in prefixes:
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


def _train_on_features(parts: Parts, config: RunConfig, registry: Registry) -> None:
    data, head = parts.dataset, parts.transferred.head
    split = features.extract(
        parts.state.model,
        head,
        parts.feed.split,
        data.inputs,
        data.spec.inputs,
        batch_size=2 * config.data.batch_size,
        place=parts.feed.place,
        precision=parts.state.precision,
    )
    spec = build.for_features(data.spec, split.fields["features"].shape[1:])
    parts.task = build.task(config.task, registry, spec)
    parts.trained = parts.state.model.get_submodule(head)
    parts.feed = replace(
        parts.feed, split=split, inputs=features.AsStored(), place=placer(parts.state.world.device, False)
    )


def wrapped(module: nn.Module, config: RunConfig, world: World) -> nn.Module:
    """The module under DDP and torch.compile, as the config asks."""
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        module = nn.parallel.DistributedDataParallel(module, device_ids=ids)
    return torch.compile(module) if config.hardware.compile else module  # type: ignore[return-value]


def report_transfer(result: Transferred, reporter: Reporter) -> None:
    """Which tensors were loaded, and which were not."""
    reporter.note(
        f"transfer: {len(result.loaded)} tensors loaded, {len(result.missing)} of the model start anew"
        + (f" ({', '.join(result.missing[:4])}{', …' if len(result.missing) > 4 else ''})" if result.missing else "")
        + (f", {len(result.unexpected)} of the source unused" if result.unexpected else "")
    )
