"""Opening the model of a run: what the verbs that read runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.config import check
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options
    from dlrun.config.schema import RunConfig
    from dlrun.predictor import TrainedModel


def model_run(run: runs.Run) -> runs.Run:
    """The run whose weights a run stands for: its own, or those that an evaluation evaluated.

    Raises: DlrunError for a parent of several runs, which has no weights itself.
    """
    if run.record.verb == "evaluate" and run.record.parents:
        return model_run(runs.find(run.folder.parents[1], run.record.parents[0]))
    if run.record.children and not run.checkpoints.is_dir():
        children = [child[:8] for child in run.record.children]
        raise DlrunError(
            f"run {run.short_id} is the parent of {len(children)} runs, and has no weights itself",
            f"name one of them: {', '.join(children[:5])}{', …' if len(children) > 5 else ''}",
        )
    return run


def load(
    run: runs.Run, options: Options, reporter: Any, device: str | None = None, config: RunConfig | None = None
) -> TrainedModel:
    """The predictor of a run, with a line on stderr for whatever is not as it was when the run was made.

    device: as typed; unless typed, the processor if the run was held to it, else the best there is here.
    config: the run's own unless some of it was changed; a change of the device then counts.
    """
    from dlrun import predictor
    from dlrun.commands.train import warn_if_components_differ
    from dlrun.training.distributed import limit_threads

    source = model_run(run)
    warn_if_components_differ(source, options.registry, reporter)
    own = config or check.read(run.folder, options.registry)
    if device is None and config is None:
        device = "cpu" if own.hardware.device == "cpu" else "auto"
    limit_threads(own.hardware.threads, 1)
    loaded = predictor.load(source.folder, device, options.registry, own)
    for line in loaded.warnings:
        reporter.note(f"warning: {line}; another checkpoint is used")
    return loaded


def config_of(run: runs.Run) -> dict[str, Any]:
    """A run's config as plain values; {} where it cannot be read, as a list of runs must not end there."""
    try:
        return check.read_plain(run.folder)
    except DlrunError:
        return {}


def result_of(run: runs.Run) -> dict[str, Any]:
    """A run's result; {} where there is none, or it cannot be read."""
    try:
        return run.result or {}
    except DlrunError:
        return {}


def described(run: runs.Run) -> dict[str, Any]:
    """The JSON object that every verb prints of a run; without a result where that cannot be read."""
    from dlrun.commands import _making as making

    try:
        return making.result_object(run)
    except DlrunError:
        nothing = {"goal": {"name": None, "value": None, "split": None}, "metrics": {}, "seconds": None, "rate": {}}
        return {
            "run_id": run.id,
            "run_dir": str(run.folder),
            "status": run.status,
            **nothing,
            "parents": list(run.record.parents),
        }


def goal_text(run: runs.Run) -> str:
    """The metric a run is judged by and its value, "test/accuracy 0.9815"; empty without a result."""
    from dlrun.commands._terminal import number

    goal = result_of(run).get("goal") or {}
    if goal.get("value") is None:
        return ""
    return f"{goal['split']}/{goal['name']} {number(float(goal['value']))}"


def data_error(message: str, hint: str = "") -> DlrunError:
    """An error of the user's data: exit code 4."""
    return DlrunError(message, hint, Exit.DATA)
