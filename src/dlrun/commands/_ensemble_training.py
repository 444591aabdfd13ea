"""Members that are trained for an ensemble: one config in several variations, children of one parent run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlrun import runs
from dlrun.commands import _ensemble_members as members_of
from dlrun.commands import _making as making
from dlrun.commands import _seeds
from dlrun.commands.train import Options, composed
from dlrun.config import check, convert
from dlrun.config.compose import compose_on
from dlrun.config.schema import RunConfig
from dlrun.contracts import InOneModel, OfCheckpoints
from dlrun.ensembles.batch_ensemble import BatchEnsemble
from dlrun.errors import DlrunError, Exit

Found = list[tuple[runs.Run, int | None]]


class Stopped(Exception):
    """A signal ended the training. code: of the command."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def trained(
    words: Sequence[str], overrides: Sequence[str], naming: Sequence[str], method: Any, options: Options, reporter: Any
) -> Found:
    """Train the members of a method. words: at most one run, whose config is varied; else that of the overrides.

    naming: overrides of the name, which is the ensemble's: what is trained for it is called after it, or after the run.
    Raises: DlrunError for several runs, and for a model that cannot be varied so; Stopped.
    """
    config = _config(words, [*overrides, *naming], options)
    config = replace(config, name=config.name and f"{config.name} members")
    if isinstance(method, InOneModel):
        if isinstance(method, BatchEnsemble):
            _require_members(config, options)
        if words and not overrides and max(config.model.copies, config.model.options.get("members", 1)) > 1:
            return members_of.references(words, options, None)
    trainings = method.trainings(config.seed, config.train.duration.text)
    if isinstance(method, OfCheckpoints | InOneModel):
        own = _varied(config, trainings[0], options)
        run = making.new_run(own, options.registry, options.runs, verb="train", reporter=reporter)
        reporter.note(f"run {run.short_id}: {own.model.name} on {own.data.name}, {own.train.duration}")
        ended = making.execute(run, own, options.registry, reporter)
        is_one = isinstance(method, InOneModel)
        if ended.signal:
            shares = isinstance(method, BatchEnsemble)
            again = "ensemble=batch_ensemble" if shares else "ensemble=deep ensemble.together=true"
            several = " ".join(f"{run.short_id}@STEP" for _ in range(2))
            then = f"dlrun ensemble {f'{run.short_id} {again}' if is_one else f'{several} …'}"
            _stop(ended.signal, f"dlrun train --resume {run.short_id}, and then {then}", reporter)
        return [(ended.run, None)] if is_one else members_of.checkpoints_of(ended.run, method.checkpoints)
    parent = making.new_run(config, options.registry, options.runs, verb="seeds", reporter=reporter)
    seeds = [_varied(config, each, options).seed for each in trainings]
    _seeds.write_plan(parent, seeds, trainings)
    parent, signal = _seeds.train_children(parent, config, options, reporter)
    if signal:
        then = f"dlrun train --resume {parent.short_id}, and then dlrun ensemble {parent.short_id}"
        _stop(signal, then, reporter)
    return members_of.references([parent.id], options, None)


def _require_members(config: RunConfig, options: Options) -> None:
    """Raises: DlrunError for a model without the setting `members`."""
    registry = options.registry
    if "members" not in registry.component("model", config.model.name).settings:
        having = [name for name in registry.listing("model") if "members" in registry.component("model", name).settings]
        raise DlrunError(
            f"ensemble=batch_ensemble: model={config.model.name} does not share its weights between members",
            f"choose model={', '.join(having)}, or ensemble=deep",
        )


def _stop(signal: str, then: str, reporter: Any) -> None:
    reporter.note(f"stopped by {signal}; go on with: {then}")
    raise Stopped(int(Exit.INTERRUPTED if signal == "SIGINT" else Exit.TERMINATED))


def _config(words: Sequence[str], overrides: Sequence[str], options: Options) -> RunConfig:
    if len(words) > 1:
        raise DlrunError(
            "this method trains its members itself, as the config of one run says", "name one run, or none"
        )
    if words:
        plain = check.read_plain(runs.find(options.runs, words[0]).folder)
        values = compose_on(plain, overrides, config_dir=options.config_dir).values if overrides else plain
        config = making.resolved(convert.to_config(values, options.registry), options.runs)
    else:
        config = composed(overrides, options)
    data = config.data
    if "split_seed" in data.options and data.options["split_seed"] is None:  # members must hold out the same rows
        config = replace(config, data=replace(data, options=data.options | {"split_seed": config.seed}))
    return config


def _varied(config: RunConfig, overrides: Sequence[str], options: Options) -> RunConfig:
    return _seeds.varied(config, overrides, options)
