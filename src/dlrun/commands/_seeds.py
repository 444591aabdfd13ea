"""`dlrun train --seeds N`: one config with several seeds, as children of a parent run; mean and deviation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import train
from dlrun.commands._terminal import TerminalReporter
from dlrun.commands.train import Options
from dlrun.config import check, convert
from dlrun.config.compose import compose_on
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit

_PLAN = "seeds.json"  # in the parent's folder: the seeds to be trained


def train_seeds(count: int, overrides: Sequence[str], options: Options) -> int:
    """The same config with `count` seeds, counted up from its own. Returns the exit code."""
    reporter = TerminalReporter()
    config = train.composed(overrides, options, reporter)
    parent = making.new_run(
        config,
        options.registry,
        options.runs,
        verb="seeds",
        require_tracking=options.require_tracking,
        reporter=reporter,
    )
    write_plan(parent, list(range(config.seed, config.seed + count)))
    return _go_on(parent, config, options, reporter)


def write_plan(parent: runs.Run, seeds: Sequence[int], overrides: Sequence[Sequence[str]] = ()) -> None:
    """Note what is to be trained under a parent. overrides: of each child, beside its seed."""
    plan = {"seeds": list(seeds)} | ({"overrides": [list(own) for own in overrides]} if overrides else {})
    runs.write_json(parent.folder / _PLAN, plan)


def varied(config: RunConfig, overrides: Sequence[str], options: Options) -> RunConfig:
    """The config with some of it changed. Raises: DlrunError."""
    values = compose_on(convert.to_plain(config), overrides, config_dir=options.config_dir).values
    return convert.to_config(values, options.registry)


def resume(parent: runs.Run, overrides: Sequence[str], options: Options) -> int:
    """Train the seeds that are missing, and finish the one that was interrupted. Returns the exit code."""
    if overrides:
        raise DlrunError(
            f"run {parent.short_id} has several seeds: it is resumed as it is, without overrides",
            f"dlrun train --resume {parent.short_id}",
        )
    reporter = TerminalReporter()
    if parent.status == "FINISHED":
        reporter.note(f"run {parent.short_id} is finished; nothing is left to do")
        train.show(parent, options)
        return int(Exit.OK)
    if not (parent.folder / _PLAN).exists():
        raise DlrunError(f"run {parent.short_id} was killed before it had written its seeds", "start it anew")
    config = check.read(parent.folder, options.registry)
    train.warn_if_components_differ(parent, options.registry, reporter)
    return _go_on(parent, config, options, reporter)


def _go_on(parent: runs.Run, config: RunConfig, options: Options, reporter: TerminalReporter) -> int:
    parent, signal = train_children(parent, config, options, reporter)
    if signal:
        reporter.note(f"stopped by {signal}; go on with: {runs.resume_command(parent)}{making.runs_flag(options.runs)}")
        return int(Exit.INTERRUPTED if signal == "SIGINT" else Exit.TERMINATED)
    train.show(parent, options)
    return int(Exit.OK)


def train_children(
    parent: runs.Run, config: RunConfig, options: Options, reporter: TerminalReporter
) -> tuple[runs.Run, str | None]:
    """Train what a parent's plan has and is not there yet. Returns the parent, and the signal that ended it, if any."""
    plan = runs.read_json(parent.folder / _PLAN)
    seeds = plan["seeds"]
    with runs.hold(parent.folder):
        begun = _children(parent, options)
        parent = parent.update(status="RUNNING", reason="", ended=None, children=tuple(c.id for c in begun.values()))
        done: list[runs.Run] = []
        for seed, overrides in zip(seeds, plan.get("overrides") or [[]] * len(seeds), strict=True):
            child = begun.get(seed)
            if child is not None and child.status == "FINISHED" and child.result:
                done.append(child)
                continue
            reporter.note(f"seed {seed} ({len(done) + 1} of {len(seeds)})")
            own = varied(config, overrides, options) if overrides else config
            own = replace(own, seed=seed, name=f"{config.name or parent.short_id} seed {seed}")
            if child is None:
                child = making.new_run(
                    own, options.registry, options.runs, verb="train", nested_under=parent.id, reporter=reporter
                )
                parent = parent.update(children=(*parent.record.children, child.id))
            else:
                making.note_resume(child, {})
            try:
                ended = making.execute(child, own, options.registry, reporter)
            except BaseException as error:
                making.finish(parent, "FAILED", f"seed {seed}: {error}".splitlines()[0])
                raise
            done.append(ended.run)
            if ended.signal:
                return making.finish(parent, "KILLED", ended.signal), ended.signal
        runs.write_json(parent.folder / "result.json", _summary(done))
        return making.finish(parent, "FINISHED", "complete"), None


def _children(parent: runs.Run, options: Options) -> dict[int, runs.Run]:
    """The runs that were made for this parent, by seed: by what they say, for its own list may lack the last."""
    mine = [
        run
        for run in runs.listing(options.runs)
        if parent.id in run.record.parents and run.record.verb == "train" and (run.folder / "config.sha256").exists()
    ]
    return {check.read(run.folder, options.registry).seed: run for run in reversed(mine)}


def _summary(children: Sequence[runs.Run]) -> dict[str, Any]:
    """Mean and sample standard deviation of every metric over the children's results."""
    results = [child.result for child in children if child.result]
    metrics: dict[str, float] = {}
    for name in results[0]["metrics"]:
        values = [result["metrics"][name] for result in results]
        metrics[name] = mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        metrics[f"{name}_std"] = math.sqrt(spread)
    goal = results[0]["goal"]
    value = metrics.get(f"{goal['split']}/{goal['name']}")
    (unit,) = results[0]["rate"]
    rates = [result["rate"][unit] or 0.0 for result in results]
    return {
        "goal": {**goal, "value": value},
        "metrics": metrics,
        "seeds": len(results),
        "step": results[0]["step"],
        "seconds": sum(result["seconds"] for result in results),
        "rate": {unit: sum(rates) / len(rates)},
    }
