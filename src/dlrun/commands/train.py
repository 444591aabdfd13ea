"""`dlrun train`: a run from a config, or on from where one stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun import launch, runs
from dlrun.commands import _making as making
from dlrun.commands._terminal import TerminalReporter, print_json, result_console, sparkline, table
from dlrun.config import check, convert
from dlrun.config.compose import compose, compose_on, leaves
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry


@dataclass(frozen=True)
class Options:
    """The flags of the command."""

    runs: Path
    registry: Registry
    config_dir: Path | None = None
    as_json: bool = False
    require_tracking: bool = False


def train(overrides: Sequence[str], options: Options) -> int:
    """Make a run and train it. Returns the exit code."""
    reporter = TerminalReporter()
    if launch.adopt_job():
        return _train_in_job(overrides, options, reporter)
    config = composed(overrides, options, reporter)
    making.send_what_is_left(options.runs)
    run = making.new_run(
        config,
        options.registry,
        options.runs,
        verb="train",
        require_tracking=options.require_tracking,
        reporter=reporter,
    )
    return run_and_show(run, config, options, reporter)


def composed(overrides: Sequence[str], options: Options, reporter: TerminalReporter | None = None) -> RunConfig:
    """The config of a command line. reporter: is told what of an experiment was left out. Raises: DlrunError."""
    made = compose(overrides, config_dir=options.config_dir)
    if reporter is not None:
        for note in made.notes:
            reporter.note(note)
    config = making.resolved(convert.to_config(made.values, options.registry), options.runs)
    if config.hardware.launcher != "local":
        raise DlrunError(
            "hardware.launcher=slurm is for the workers of a sweep", "one run, in a job: srun dlrun train …"
        )
    return config


def run_and_show(run: runs.Run, config: RunConfig, options: Options, reporter: TerminalReporter) -> int:
    """Train, draw, and print what came out; the exit code says how it ended."""
    reporter.note(f"run {run.short_id}: {config.model.name} on {config.data.name}, {config.train.duration}")
    ended = making.execute(run, config, options.registry, reporter)
    show(ended.run, options)
    if ended.signal:
        reporter.note(
            f"stopped by {ended.signal}; a checkpoint is saved. Go on with: {runs.resume_command(run)}"
            f"{making.runs_flag(options.runs)}"
        )
        return int(Exit.INTERRUPTED if ended.signal == "SIGINT" else Exit.TERMINATED)
    return int(Exit.OK)


def show(run: runs.Run, options: Options) -> None:
    """The final table (or the JSON object) on stdout."""
    if options.as_json:
        print_json(making.result_object(run))
        return
    console, result = result_console(), run.result
    if result:
        console.print(table(["metric", "value"], [[name, value] for name, value in result["metrics"].items()]))
        for line in result.get("signatures", ()):
            console.print(line, soft_wrap=True)
        _curves(run, console)
        _health(run, console)
    console.print(f"run      {run.id}  {run.status}")
    console.print(f"folder   {run.folder}", soft_wrap=True)
    console.print(f"see it   dlrun ui{making.runs_flag(options.runs)}", soft_wrap=True)


def _curves(run: runs.Run, console: Any) -> None:
    from dlrun.training.metrics_log import histories, read_rows

    found = histories(read_rows(run.metrics_file))
    goal = f"valid/{run.result['goal']['name']}" if run.result else ""
    for name in ("train/loss", goal):
        values = [value for _, value in found.get(name, [])]
        if len(values) > 1:
            console.print(f"{name:<16} {sparkline(values)}  {values[0]:.4g} → {values[-1]:.4g}", markup=False)


def _health(run: runs.Run, console: Any) -> None:
    """The verdict of train.diagnose, and the overrides that cure."""
    path = run.folder / "report" / "gradients.json"
    if not path.exists():
        return
    report = runs.read_json(path)
    console.print(f"gradients: {report['verdict']} ({report['reason']})", markup=False)
    if report["cure"]:
        console.print(f"  try: {' '.join(report['cure'])}", markup=False)


# ---------------------------------------------------------------- resume


def resume(reference: str, overrides: Sequence[str], options: Options) -> int:
    """Go on with a run from its newest checkpoint. A finished run, unchanged, is only shown."""
    reporter = TerminalReporter()
    run = runs.find(options.runs, reference)
    if run.record.verb == "seeds":
        from dlrun.commands import _seeds

        return _seeds.resume(run, overrides, options)
    if run.record.verb != "train":
        raise DlrunError(
            f"run {run.short_id} is a {run.record.verb}, and only a train run is resumed here",
            runs.resume_command(run) or "see: dlrun runs",
        )
    warn_if_components_differ(run, options.registry, reporter)
    config = check.read(run.folder, options.registry)
    changed = _changed(run, config, overrides, options)
    if run.status == "FINISHED" and changed == config and run.result:
        reporter.note(f"run {run.short_id} is finished; nothing is left to do")
        show(run, options)
        return int(Exit.OK)
    with runs.hold(run.folder):  # refuse a second one before anything is written
        making.note_resume(run, _differences(config, changed))
        (run.folder / "result.json").unlink(missing_ok=True)
        check.write(run.folder, changed)
    return run_and_show(run, changed, options, reporter)


def _changed(run: runs.Run, config: RunConfig, overrides: Sequence[str], options: Options) -> RunConfig:
    """The config with what a resume may change. Raises: DlrunError for anything else."""
    if not overrides:
        return config
    values = compose_on(check.read_plain(run.folder), overrides, config_dir=options.config_dir).values
    changed = convert.to_config(values, options.registry)
    for name in _differences(config, changed):
        if name == "train.duration":
            _longer(config, changed)
        elif not name.startswith(("hardware.", "tracking.")) and name != "data.workers":
            raise DlrunError(
                f"--resume cannot change {name}: the run would not be the same run",
                f"start a new one: dlrun train … transfer=finetune transfer.from=run:{run.short_id}",
            )
    return changed


def _longer(config: RunConfig, changed: RunConfig) -> None:
    old, new = config.train.duration, changed.train.duration
    if new.unit != old.unit or new.value < old.value:
        raise DlrunError(f"--resume can only make the run longer than '{old}'; '{new}' was given", "use the same unit")


def _differences(old: RunConfig, new: RunConfig) -> dict[str, list[Any]]:
    before, after = leaves(convert.to_plain(old)), leaves(convert.to_plain(new))
    return {
        name: [before.get(name), after.get(name)]
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def warn_if_components_differ(run: runs.Run, registry: Registry, reporter: TerminalReporter) -> None:
    """Say so if the user's component files are not those the run was made with."""
    from dlrun.registry import digest

    for name, stated in run.record.components.items():
        path = registry.components / name if registry.components else None
        if path is None or not path.exists():
            raise DlrunError(
                f"run {run.short_id} uses your component {name}, which is not found",
                f"say --components DIR (a copy is in {run.folder / 'components'})",
            )
        if digest(path) != stated:
            reporter.note(
                f"warning: {name} has changed since run {run.short_id} was made (its copy is in the run folder)"
            )


# ---------------------------------------------------------------- inside a job


def _train_in_job(overrides: Sequence[str], options: Options, reporter: TerminalReporter) -> int:
    run, main = launch.in_job(
        lambda: making.new_run(
            composed(overrides, options),
            options.registry,
            options.runs,
            verb="train",
            require_tracking=options.require_tracking,
        )
    )
    config = check.read(run.folder, options.registry)
    if main:
        return run_and_show(run, config, options, reporter)
    from dlrun import worker

    try:
        how = worker.train(run.folder, options.registry, worker.Silent())
    except BaseException as error:
        worker.write_failure(run.folder, int(os.environ["RANK"]), error)
        raise
    return {"SIGINT": int(Exit.INTERRUPTED), "SIGTERM": int(Exit.TERMINATED)}.get(how, int(Exit.OK))
