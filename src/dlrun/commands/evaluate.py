"""`dlrun evaluate`: the metrics of a run's best weights on a split of its data, or of other data.

Without overrides no run is made: the metrics are printed, and the run's folder keeps the predictions, where a second
call finds them (see _predictions.py).

With overrides a run is made: verb `evaluate`, parents=[RUN], its config RUN's with the overrides, its result these
metrics. Its weights are RUN's, so it can be evaluated and asked for predictions itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _predictions as predictions
from dlrun.commands import _reading as reading
from dlrun.commands._predictions import Source
from dlrun.commands._terminal import TerminalReporter, print_json, result_console, table
from dlrun.config import check, convert
from dlrun.config.compose import compose_on, leaves
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options
    from dlrun.contracts import Outputs, Task
    from dlrun.predictor import TrainedModel

_CHANGEABLE = ("data", "task", "hardware", "tracking", "train.precision", "name")


@dataclass(frozen=True)
class Scored:
    """metrics: "test/accuracy" -> value.  tables: what metrics have to show beside numbers.
    num_counted: examples, or what else the task counts.  seconds: of predicting; None where predictions were found."""

    metrics: dict[str, float]
    tables: dict[str, list]
    num_counted: int
    seconds: float | None


def evaluate(
    reference: str, overrides: Sequence[str], options: Options, *, split: str = "test", device: str | None = None
) -> int:
    """Print a run's metrics on a split. Returns the exit code."""
    reporter = TerminalReporter()
    run = runs.find(options.runs, reference)
    if overrides:
        return _as_a_run(run, overrides, options, split, device, reporter)
    predictor = reading.load(run, options, reporter, device)
    scored = _score(predictor, split, run.folder, reporter)
    if options.as_json:
        said = _result(predictor, split, scored)
        said["goal"].pop("mode")
        print_json({**making.result_object(run), **said})
    else:
        _show(scored)
    return 0


# What decides which rows of the run's data were held out.
_HELD_OUT_BY = tuple(f"data.{name}" for name in ("split", "split_seed", "splits", "valid_fraction", "test_fraction",
                                                 "valid_size", "test_size", "train_size"))  # fmt: skip


def _as_a_run(
    source: runs.Run,
    overrides: Sequence[str],
    options: Options,
    split: str,
    device: str | None,
    reporter: TerminalReporter,
) -> int:
    config = _changed(source, overrides, options)
    if split == "test" and not any(text.lstrip("+").split("=")[0] in _HELD_OUT_BY for text in overrides):
        config = _whole(config, check.read_plain(source.folder)["data"].get("path"), options)
    predictor = reading.load(source, options, reporter, device, config)
    predictions.require_split(predictor, split)  # data that cannot be read leaves no run behind
    for note in predictor.dataset.notes:
        reporter.note(note)
    run = making.new_run(
        config,
        options.registry,
        options.runs,
        verb="evaluate",
        parents=[source.id],
        require_tracking=options.require_tracking,
        reporter=reporter,
    )
    with making.held(run):
        scored = _score(predictor, split, run.folder, reporter)
        _record(run, predictor, split, scored)
        run = making.finish(run, "FINISHED", "complete")
    if options.as_json:
        print_json(making.result_object(run))
    else:
        _show(scored)
        result_console().print(f"run      {run.id}  of {source.short_id}\nfolder   {run.folder}", soft_wrap=True)
    return 0


def _changed(source: runs.Run, overrides: Sequence[str], options: Options) -> RunConfig:
    """The config with what an evaluation may change. Raises: DlrunError for what the weights depend on."""
    before = check.read_plain(source.folder)
    config = convert.to_config(compose_on(before, overrides, config_dir=options.config_dir).values, options.registry)
    own = convert.to_config(before, options.registry)  # with what has been added to the schema since
    old, new = leaves(convert.to_plain(own)), leaves(convert.to_plain(config))
    # A group's name first: another model is the error, not the settings it lacks.
    for name in sorted(old.keys() | new.keys(), key=lambda name: (not name.endswith(".name"), name)):
        if old.get(name) != new.get(name) and not f"{name}.".startswith(tuple(f"{word}." for word in _CHANGEABLE)):
            raise DlrunError(
                f"evaluate cannot change {name}: it is part of how the run was trained",
                f"it can change {', '.join(_CHANGEABLE)}",
            )
    same_data = all(old.get(name) == new.get(name) for name in ("data.name", "data.path"))
    for name in _HELD_OUT_BY if same_data else ():
        if old.get(name) != new.get(name):
            raise DlrunError(
                f"evaluate cannot change {name} on the run's own data: rows it was trained on would be scored",
                "name other data: data.path=PATH",
            )
    if config.name and old.get("name") == config.name:  # the name stays the trained run's own
        config = replace(config, name=f"{config.name} evaluated")
    return config


def _whole(config: RunConfig, own: str | None, options: Options) -> RunConfig:
    """The config with other data than the run's own as the test split whole: none of its rows were trained on.

    That is one table or one folder of class folders, where rows are held out at random. A series is split by time,
    interactions by user, and other folders as they are laid out.
    """
    from dlrun.data._files import the_only_part

    path = config.data.options.get("path")
    settings = options.registry.component("data", config.data.name).settings
    if not path or not {"splits", "valid_size"} <= settings.keys() or not Path(path).expanduser().exists():
        return config
    place = Path(path).expanduser().absolute()
    is_own = own and place.resolve() == Path(own).expanduser().resolve()
    is_read_alike = place.is_file() or config.data.name == "files"  # other components lay out folders in their own way
    name = None if is_own or not is_read_alike else the_only_part(place)
    if name is None:
        return config
    return replace(config, data=replace(config.data, options={**config.data.options, "splits": {"test": name}}))


def _record(run: runs.Run, predictor: TrainedModel, split: str, scored: Scored) -> None:
    """The new run's files: spec, metrics, tables, figures, result."""
    from dlrun.commands import _figures
    from dlrun.training.evaluate import write_tables
    from dlrun.training.metrics_log import MetricsLog

    predictor.spec.save(run.folder)
    log = MetricsLog(run.metrics_file)
    log.write(predictor.step, scored.metrics)
    log.close()
    write_tables(run.folder, scored.tables, predictor.spec.labels)
    _figures.draw(run)
    runs.write_json(run.folder / "result.json", {**_result(predictor, split, scored), "step": predictor.step})


def _result(predictor: TrainedModel, split: str, scored: Scored) -> dict[str, Any]:
    from dlrun.contracts import unit_of_rate

    goal = predictor.task.goal
    rate = scored.num_counted / scored.seconds if scored.seconds else None
    value = scored.metrics.get(f"{split}/{goal.metric}")
    return {
        "goal": {"name": goal.metric, "mode": goal.mode, "value": value, "split": split},
        "metrics": scored.metrics,
        "seconds": scored.seconds or 0.0,
        "rate": {f"{unit_of_rate(predictor.task)}_per_second": rate},
    } | {name: scored.tables[name] for name in ("signatures",) if name in scored.tables}


def _show(scored: Scored) -> None:
    result_console().print(table(["metric", "value"], list(scored.metrics.items())))
    for line in scored.tables.get("signatures", ()):
        result_console().print(line, soft_wrap=True)


# ---------------------------------------------------------------- predictions


def _score(predictor: TrainedModel, split: str, folder: Path, reporter: TerminalReporter) -> Scored:
    """Metrics of a split from its predictions, which are made where the folder does not have them."""
    found = predictions.predicted(Source.of(predictor, folder), split, reporter)
    outputs = found.outputs
    values, tables = measured(predictor.task, outputs, split)
    how = f"in {found.seconds:.1f} s" if found.is_new else "from predictions made before"
    reporter.note(
        f"run {predictor.run.short_id}, step {predictor.step}: {len(outputs.ids):,} examples of {split} {how}"
    )
    num_counted = _counted(predictor, split, outputs) if found.is_new else 0
    return Scored(values, tables, num_counted, found.seconds if found.is_new else None)


def _counted(predictor: TrainedModel, split: str, outputs: Outputs) -> int:
    """Tokens of texts, else targets or examples."""
    from dlrun.contracts import WithTokens

    rows = predictor.dataset.split(split)
    if "tokens" in predictor.spec.inputs and isinstance(rows, WithTokens):
        return rows.num_tokens
    counted = outputs.fields.get("num_targets")
    return len(outputs.ids) if counted is None else int(counted.sum())


def measured(task: Task, outputs: Outputs, split: str) -> tuple[dict[str, float], dict[str, list]]:
    """The task's metrics by name ("test/accuracy"), and their tables."""
    from dlrun.contracts import WithTables

    values: dict[str, float] = {}
    tables: dict[str, list] = {}
    for metric in task.metrics():
        metric.update(outputs)
        values |= {f"{split}/{name}": value for name, value in metric.compute().items()}
        tables |= metric.tables() if isinstance(metric, WithTables) else {}
    return values, tables
