"""`dlrun compress`: a smaller run from a run, by one method or a stack of them, with the proof of what it cost.

The run (verb `compress`, parents=[RUN, its teachers]) stands on RUN's config; with a student its `model` is the
student's. Its folder has plan.json ({"steps": [{"name", "method", "options", "plan", "report"}]}), which rebuilds the
module tree, own weights, and result.json with before, after and ratios. compression.json is what was asked for: a
compression that was killed is done again by it, without the fine-tunings that it had done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _reading as reading
from dlrun.commands._compress_work import ASKED, Work, for_reading, show
from dlrun.commands._terminal import TerminalReporter
from dlrun.config import check, convert
from dlrun.config.compose import compose, compose_on, leaves
from dlrun.config.schema import CompressionConfig, RunConfig, TransferConfig
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from torch import nn

    from dlrun.commands.train import Options

_CHANGEABLE = ("optimizer.", "schedule.", "train.", "hardware.", "tracking.", "data.batch_size", "data.workers",
               "data.augment", "seed", "name")  # fmt: skip


def compress(
    reference: str, overrides: Sequence[str], options: Options, *, max_drop: str | None = None,
    device: str | None = None,
) -> int:  # fmt: skip
    """Make a compressed run. Returns the exit code."""
    own, others = _parted(overrides)
    verb = compose(own, config_dir=options.config_dir, verb="compression").verb
    steps: dict[str, CompressionConfig] = convert.to_stack("compression", verb, options.registry)
    if max_drop is not None:
        _require_drop(max_drop)
    for name, teacher in _teachers(steps, options).items():  # by its id: `latest` will be another run
        verb[name]["teacher"] = steps[name].options["teacher"] = teacher
    source = reading.model_run(runs.find(options.runs, reference))
    asked = {"compression": verb, "max_drop": max_drop, "device": device}
    return _made(source, _config(source, others, options), steps, asked, options)


def resume(reference: str, options: Options) -> int:
    """Do a compression that was killed again, with what its fine-tunings left. A finished one is only shown."""
    from dlrun.commands.train import warn_if_components_differ

    run = runs.find(options.runs, reference)
    if run.record.verb != "compress":
        raise DlrunError(
            f"run {run.short_id} is of {run.record.verb}, and only a compression is resumed here",
            runs.resume_command(run) or "see: dlrun runs",
        )
    if run.status == "FINISHED" and run.result:
        TerminalReporter().note(f"run {run.short_id} is finished; nothing is left to do")
        show(run, options)
        return int(Exit.OK)
    if not (run.folder / ASKED).is_file():
        raise DlrunError(f"run {run.short_id} does not say what was asked for ({ASKED})", "start the compression anew")
    warn_if_components_differ(run, options.registry, TerminalReporter())
    asked = runs.read_json(run.folder / ASKED)
    steps = convert.to_stack("compression", asked["compression"], options.registry)
    source = runs.find(options.runs, run.record.parents[0])
    return _made(source, check.read(run.folder, options.registry), steps, asked, options, run)


def _made(
    source: runs.Run, config: RunConfig, steps: dict[str, CompressionConfig], asked: dict[str, Any], options: Options,
    run: runs.Run | None = None,
) -> int:  # fmt: skip
    """Do what was asked, in the run that was begun, if one was, and show it."""
    from dlrun.commands._compress_tools import Interrupted

    reporter = TerminalReporter()
    making.send_what_is_left(options.runs)
    predictor = reading.load(source, options, reporter, asked["device"], for_reading(source, config, options))
    work = Work(source, predictor, config, options, reporter, asked)
    try:
        with work.closed():
            if run is not None:
                work.go_on(run)
            work.require(steps)
            model = work.apply(steps) if asked["max_drop"] is None else _searched(work, steps, asked["max_drop"])
            run = work.finish(model)
    except (Interrupted, KeyboardInterrupt) as stopped:
        if work.run is None:
            raise
        name = stopped.name if isinstance(stopped, Interrupted) else "SIGINT"
        command = runs.resume_command(work.run) + making.runs_flag(options.runs)
        reporter.note(f"stopped by {name}. Go on with: {command}")
        return int(Exit.INTERRUPTED if name == "SIGINT" else Exit.TERMINATED)
    show(run, options)
    return int(Exit.OK)


def _searched(work: Work, steps: dict[str, CompressionConfig], max_drop: str) -> nn.Module:
    from dlrun.commands import _compress_search

    return _compress_search.strongest(work, steps, max_drop)


def _require_drop(max_drop: str) -> None:
    from dlrun.commands import _compress_search

    _compress_search.allowed_drop(max_drop, 0.0)  # says what is wrong with it before a run is read


def _teachers(steps: dict[str, CompressionConfig], options: Options) -> dict[str, str]:
    """Ids of the runs that teach, by the step. Raises: DlrunError for one that is not there."""
    named = {name: step.options.get("teacher") for name, step in steps.items()}
    return {
        name: reading.model_run(runs.find(options.runs, reference)).id
        for name, reference in named.items()
        if isinstance(reference, str)
    }


def _parted(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the compression's own group (model@compression.distill.student too), and the others."""
    keys = [text.lstrip("+~").partition("=")[0].rpartition("@")[2] for text in overrides]
    own = [text for text, key in zip(overrides, keys, strict=True) if key.split(".")[0] == "compression"]
    return own, [text for text in overrides if text not in own]


def _config(source: runs.Run, overrides: Sequence[str], options: Options) -> RunConfig:
    """The source's, that starts from nothing. Raises: DlrunError for what its weights were made with."""
    before = check.read_plain(source.folder)
    values = compose_on(before, overrides, config_dir=options.config_dir).values if overrides else before
    config = convert.to_config(values, options.registry)
    own = convert.to_config(before, options.registry)  # with what has been added to the schema since
    old, new = leaves(convert.to_plain(own)), leaves(convert.to_plain(config))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(_CHANGEABLE):
            raise DlrunError(
                f"compress cannot change {name}: the weights of run {source.short_id} were made with it",
                "it can change compression.*, optimizer, schedule, train, hardware, data.augment, seed and name",
            )
    is_named = any(text.lstrip("+").startswith("name=") for text in overrides)
    name = config.name if is_named else f"{config.name or source.short_id} compressed"
    return replace(config, name=name, transfer=TransferConfig("none"))
