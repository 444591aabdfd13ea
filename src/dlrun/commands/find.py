"""`dlrun find lr` and `dlrun find batch-size`: short trials of the composed run, and the override they suggest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dlrun.commands import _find_batch, _find_lr
from dlrun.commands import _rehearsal as rehearsal
from dlrun.commands._terminal import number, print_json, progress_console, result_console, sparkline, table
from dlrun.commands.train import composed
from dlrun.errors import DlrunError, did_you_mean

if TYPE_CHECKING:
    from dlrun.commands.train import Options

WHAT = ("lr", "batch-size")


def find(what: str, overrides: Sequence[str], options: Options, *, output: Path | None) -> int:
    """Try the composed run for some steps and print what was found; no run is made."""
    if what not in WHAT:
        raise DlrunError(f"'{what}' cannot be looked for", did_you_mean(what, WHAT))
    if what == "batch-size" and output is not None:
        raise DlrunError("--output draws the curve of dlrun find lr; batch-size has none", "leave it out")
    return _batch_size(overrides, options) if what == "batch-size" else _lr(overrides, options, output)


def _lr(overrides: Sequence[str], options: Options, output: Path | None) -> int:
    config = composed(overrides, options)
    with rehearsal.assembled(config, options.registry, options.runs) as parts:
        result = _find_lr.range_test(parts, config)
    if output is not None:
        _find_lr.draw(result, output, f"{config.model.name} on {config.data.name}, {config.optimizer.name}")
    if options.as_json:
        print_json(result.to_json())
        return 0
    console = result_console()
    console.print(table(["lr", "loss", "smoothed"], result.rows(12)))
    console.print(f"\nloss over log lr   {sparkline(result.smoothed, 60)}", markup=False)
    console.print(f"steepest fall at {number(result.steepest)}, lowest at {number(result.lowest)}, "
                  + ("diverged after that" if result.diverged else "no divergence"), markup=False)  # fmt: skip
    console.print(f"use   {result.override}", markup=False)
    return 0


def _batch_size(overrides: Sequence[str], options: Options) -> int:
    config = composed(overrides, options)
    note = progress_console().print
    with rehearsal.assembled(config, options.registry, options.runs) as parts:
        result = _find_batch.search(parts, report=lambda text: note(text, markup=False))
    if options.as_json:
        print_json(result.to_json())
        return 0
    console = result_console()
    rows = [[trial.batch_size, round(trial.samples_per_second), f"{trial.memory_bytes / 2**20:,.0f} MiB"]
            for trial in result.trials]  # fmt: skip
    console.print(table(["batch", "samples/s", "peak memory"], rows))
    console.print(f"stopped: {result.reason}", markup=False)
    console.print(f"use   {result.override}", markup=False)
    return 0
