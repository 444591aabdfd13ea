"""`dlrun compress`: a smaller run from a run, by one method or a stack of them, with the proof of what it cost.

The run (verb `compress`, parents=[RUN]) stands on RUN's config; with a student its `model` is the student's. Its folder
has plan.json ({"steps": [{"name", "method", "options", "plan", "report"}]}), which rebuilds the module tree, own
weights, and result.json with before, after and ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _reading as reading
from dlrun.commands._compress_work import Work, for_reading
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
    from dlrun.commands._compress_tools import Interrupted

    reporter = TerminalReporter()
    own, others = _parted(overrides)
    verb = compose(own, config_dir=options.config_dir, verb="compression").verb
    steps: dict[str, CompressionConfig] = convert.to_stack("compression", verb, options.registry)
    source = reading.model_run(runs.find(options.runs, reference))
    config = _config(source, others, options)
    making.send_what_is_left(options.runs)
    predictor = reading.load(source, options, reporter, device, for_reading(source, config, options))
    work = Work(source, predictor, config, options, reporter)
    try:
        with work.closed():
            work.require(steps)
            model = _searched(work, steps, max_drop) if max_drop else work.apply(steps)
            run = work.finish(model)
    except Interrupted as stopped:
        reporter.note(f"stopped by {stopped.name}; a compression does not go on: start it anew")
        return int(Exit.INTERRUPTED if stopped.name == "SIGINT" else Exit.TERMINATED)
    work.show(run)
    return int(Exit.OK)


def _searched(work: Work, steps: dict[str, CompressionConfig], max_drop: str) -> nn.Module:
    from dlrun.commands import _compress_search

    return _compress_search.strongest(work, steps, max_drop)


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
