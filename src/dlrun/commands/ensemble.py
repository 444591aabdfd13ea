"""`dlrun ensemble`: a run from runs, whose predictions or weights become one.

The run (verb `ensemble`, parents = its members) stands on the first member's config. Its folder has plan.json (see
_predictor_ensemble.py), report/ensemble.json, figures/ensemble.png and result.json; where weights were averaged,
checkpoints too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands._terminal import TerminalReporter, print_json, result_console, table
from dlrun.config import check, convert
from dlrun.config.compose import compose, compose_on, leaves
from dlrun.config.schema import EnsembleConfig, RunConfig, TransferConfig
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands._ensemble_making import Made
    from dlrun.commands._ensemble_members import Member
    from dlrun.commands.train import Options

_DEFAULT = "ensemble=average"
_CHANGEABLE = ("hardware.", "tracking.", "name")


def ensemble(given: Sequence[str], options: Options, *, top: int | None = None, device: str | None = None) -> int:
    """Make an ensemble of the runs among the words, with the overrides among them. Returns the exit code."""
    words = [text for text in given if "=" not in text]
    own, others = _parted([text for text in given if "=" in text], "ensemble")
    verb = compose(own, config_dir=options.config_dir, verb=_DEFAULT).verb
    settings: EnsembleConfig = convert.to_verb("ensemble", verb, options.registry)
    reporter = TerminalReporter()
    making.send_what_is_left(options.runs)
    from dlrun.commands._ensemble_training import Stopped

    try:
        return _ensemble(words, others, settings, options, reporter, top, device)
    except Stopped as stopped:
        return stopped.code


def _parted(overrides: Sequence[str], root: str) -> tuple[list[str], list[str]]:
    """Those of this group or field, and the others."""
    roots = [text.lstrip("+~").partition("=")[0].split(".")[0] for text in overrides]
    own = [text for text, found in zip(overrides, roots, strict=True) if found == root]
    return own, [text for text in overrides if text not in own]


def _ensemble(
    words: Sequence[str],
    overrides: Sequence[str],
    settings: EnsembleConfig,
    options: Options,
    reporter: TerminalReporter,
    top: int | None,
    device: str | None,
) -> int:
    from dlrun._predictor_ensemble import method_of
    from dlrun.commands import _ensemble_making as stages
    from dlrun.commands import _ensemble_members as members_of
    from dlrun.commands import _ensemble_shift
    from dlrun.contracts import DataSpec, OfCheckpoints, TrainsMembers

    method = method_of(settings, options.registry, DataSpec((), "", {}, {}))  # to know what kind of method it is
    if isinstance(method, TrainsMembers):
        from dlrun.commands import _ensemble_training

        overrides, others = _parted(overrides, "name")
        found = _ensemble_training.trained(words, others, overrides, method, options, reporter)
    else:
        if not words:
            raise DlrunError(
                f"ensemble={settings.name} is made of runs, and none is named",
                "dlrun ensemble RUN RUN …, or a method that trains its members: ensemble=deep",
            )
        found = members_of.references(words, options, top)
        if isinstance(method, OfCheckpoints):
            found = members_of.along_one_run(found, settings.name, method.checkpoints)
    members = members_of.opened(found, options, reporter, device)
    members_of.require_alike(members)
    method = method_of(settings, options.registry, members[0].spec)
    kind = stages.kind_of(method, members)
    config = _config(members, overrides, settings, options)
    made = stages.make(method, settings, kind, members, options, reporter)
    if settings.shift:
        _ensemble_shift.require_classes(made)
    run = making.new_run(
        config, options.registry, options.runs, verb="ensemble", parents=list(dict.fromkeys(m.run.id for m in members)),
        require_tracking=options.require_tracking, reporter=reporter, beside=[("ensemble", settings.name)],
    )  # fmt: skip
    with making.held(run):
        report = _write(run, made, members, method, settings, config)
        run = making.finish(run, "FINISHED", "complete")
    _show(run, report, options)
    return int(Exit.OK)


def _config(
    members: Sequence[Member], overrides: Sequence[str], settings: EnsembleConfig, options: Options
) -> RunConfig:
    """The first member's, that starts from nothing. Raises: DlrunError for what the members were trained with."""
    before = check.read_plain(members[0].run.folder)
    values = compose_on(before, overrides, config_dir=options.config_dir).values if overrides else before
    config = convert.to_config(values, options.registry)
    old, new = leaves(before), leaves(convert.to_plain(config))
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name] and not name.startswith(_CHANGEABLE):
            raise DlrunError(
                f"ensemble cannot change {name}: the members were trained with it",
                "it can change ensemble.*, hardware.*, tracking.* and name",
            )
    name = config.name if _parted(overrides, "name")[0] else f"{settings.name} of {len(members)}"
    return replace(config, name=name, transfer=TransferConfig("none"))


# ---------------------------------------------------------------- the run's files


def _write(
    run: runs.Run, made: Made, members: Sequence[Member], method: Any, settings: EnsembleConfig, config: RunConfig
) -> dict[str, Any]:
    """Everything of the run, result.json last. Returns the report."""
    from dlrun import serving
    from dlrun._predictor_ensemble import PLAN
    from dlrun.commands import _ensemble_making as stages
    from dlrun.commands import _ensemble_report, _ensemble_shift

    members[0].spec.save(run.folder)
    if made.tensors is not None:
        stages.save_weights(run, made.tensors)
    runs.write_json(run.folder / PLAN, {
        "method": convert.to_plain(settings), "kind": made.kind,
        "members": [{"run": member.run.id, "step": member.step} for member in members],
        "fit": made.fit, "temperature": made.temperature,
    })  # fmt: skip
    report = _ensemble_report.report(made, members, method, settings)
    if settings.shift:
        _ensemble_report.add_shift(report, _ensemble_shift.shift(run, made, members, method, settings))
    (run.folder / "report").mkdir(exist_ok=True)
    runs.write_json(run.folder / "report" / "ensemble.json", report)
    result = _result(run, made, members, settings, config, report)
    _draw(run, report)
    serving.write_mlmodel(run.folder, run_id=run.id)
    runs.write_json(run.folder / "result.json", result)
    return report


def _result(
    run: runs.Run, made: Made, members: Sequence[Member], settings: EnsembleConfig, config: RunConfig, report: dict
) -> dict[str, Any]:
    """result.json; the predictions, metrics.jsonl and the table of confusions are written on the way."""
    from dlrun import predictor
    from dlrun.commands import _predictions as predictions
    from dlrun.commands.evaluate import measured
    from dlrun.ensembles._calibration import tempered
    from dlrun.training.metrics_log import MetricsLog

    task, by = members[0].task, made.temperature if settings.calibrate else None
    seconds = sum(each for each in made.seconds if each == each)
    weights = predictor.weights_digest(run.folder)
    source = predictions.Source(run.folder, config, members[0].spec, weights, members[0].source.open)
    metrics, tables = {}, {}
    for split, outputs in (("valid", made.valid), ("test", made.test)):
        if outputs is not None:
            said = outputs if by is None else tempered(outputs, by)
            values, tables = measured(task, said, split)
            metrics |= values
            took = seconds if outputs is (made.test or made.valid) else float("nan")  # which of them was timed
            predictions.store(source, split, made.fingerprint, said, took, TerminalReporter(quiet=True))
    log = MetricsLog(run.metrics_file)
    log.write(0, metrics)
    log.close()
    if "confusion" in tables:
        shown = {"labels": list(members[0].spec.labels), "counts": tables["confusion"]}
        runs.write_json(run.folder / "confusion.json", shown)
    goal = report["goal"]
    counted = len((made.test or made.valid).ids)  # type: ignore[union-attr]
    return {
        "goal": {**goal, "value": metrics.get(f"{goal['split']}/{goal['name']}")}, "metrics": metrics, "step": 0,
        "seconds": seconds, "rate": {"samples_per_second": counted / seconds if seconds else None},
        "parameters": report["ensemble"]["parameters"],
        "members": [{name: row.get(name) for name in ("run_id", "step", "weight", "value", "contribution")}
                    for row in report["members"]],
    }  # fmt: skip


def _draw(run: runs.Run, report: dict[str, Any]) -> list[Path]:
    from dlrun.commands import _ensemble_figure, _figures

    return [_ensemble_figure.draw(report, run.folder / "figures" / "ensemble.png"), *_figures.draw(run)]


def _show(run: runs.Run, report: dict[str, Any], options: Options) -> None:
    from dlrun.commands import _ensemble_report

    result = run.result or {}
    if options.as_json:
        print_json(making.result_object(run) | {"members": result["members"]})
        return
    console = result_console()
    _ensemble_report.show(report)
    console.print(table(["metric", "value"], list(result["metrics"].items())))
    console.print(f"run      {run.id}  {run.status}\nfolder   {run.folder}", soft_wrap=True)
