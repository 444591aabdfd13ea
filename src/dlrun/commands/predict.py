"""`dlrun predict`: what a run says of new pictures, of the rows of a table, or to a prompt."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.commands import _reading as reading
from dlrun.commands._prediction_files import PredictionFiles
from dlrun.commands._prompts import losses, print_plainly, said_to
from dlrun.commands._rows import Example, examples
from dlrun.commands._terminal import TerminalReporter, number, print_json, result_console, table
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options
    from dlrun.contracts import Outputs, Row
    from dlrun.predictor import TrainedModel

_BY_SUFFIX = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def predict(
    reference: str,
    inputs: Sequence[Path],
    options: Options,
    *,
    format: str | None = None,
    output: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    device: str | None = None,
    prompts: Sequence[str] = (),
    generation: Mapping[str, Any] | None = None,
) -> int:
    """Print one prediction an example: its file, its row there, and what the task says. Returns the exit code.

    out: a folder for the task's files of each example (masks, pictures with boxes), beside what is printed.
    prompts: texts to answer or to go on with, instead of files.
    generation: how texts are said (see decoding.Generation), None for what the run's task does.
    """
    if bool(prompts) == bool(inputs):
        raise DlrunError(
            "predict takes files or prompts, not both" if prompts else "nothing to predict: no file was given",
            'dlrun predict RUN FILE…, or dlrun predict RUN --prompt "TEXT"',
        )
    if prompts and (out or limit):
        raise DlrunError("--out and --limit go with files, not with --prompt")
    if options.as_json and (format or output):
        raise DlrunError("--json goes with neither --format nor --output", "use --format jsonl --output FILE")
    reporter = TerminalReporter()
    run = runs.find(options.runs, reference)
    predictor = reading.load(run, options, reporter, device)
    predictor.change_generation(**(generation or {}))
    files = PredictionFiles(out, predictor) if out is not None else None
    if prompts:
        predictions = said_to(predictor, prompts)
    else:
        given = itertools.islice(examples(inputs, predictor.spec), limit)
        predictions = list(_predictions(predictor, given, files, reporter))
    for line in losses(predictor):
        reporter.note(f"warning: {line}")
    if files is not None:
        files.finish()
        reporter.note(f"{files.count:,} files are in {out}")
    if options.as_json:
        written = {} if files is None else {"folder": str(files.folder.absolute()), "files": files.count}
        print_json({"run_id": run.id, "predictions": predictions} | written)
        return 0
    if prompts and format is None and output is None:
        print_plainly(predictions)
        return 0
    format = format or _BY_SUFFIX.get(output.suffix.lower() if output else "", "table")
    if output is None:
        _print(predictions, format)
    else:
        _write(output, predictions, format)
        reporter.note(f"{len(predictions):,} predictions are in {output}")
    return 0


def _predictions(
    predictor: TrainedModel, given: Iterator[Example], files: PredictionFiles | None, reporter: TerminalReporter
) -> Iterator[Row]:
    done = 0
    with reporter.console.status("predicting") as status:
        while chunk := list(itertools.islice(given, 2 * predictor.config.data.batch_size)):
            outputs = _outputs(predictor, chunk)
            if files is not None:
                files.take(chunk, outputs)
            for example, said in zip(chunk, predictor.task.rows(outputs), strict=True):
                yield {**example.columns, **{name: value for name, value in said.items() if name != "id"}}
            done += len(chunk)
            status.update(f"predicting ({done:,} done)")


def _outputs(predictor: TrainedModel, chunk: list[Example]) -> Outputs:
    """What the model says of each example. Raises: DlrunError (code DATA) naming the one that cannot be read."""
    try:
        return predictor.predict_rows([example.row for example in chunk])
    except DlrunError as error:
        raise _named(predictor, chunk, error) from error


def _named(predictor: TrainedModel, chunk: list[Example], error: DlrunError) -> DlrunError:
    """The same error with the file and row of the first example that fails by itself."""
    for example in chunk:
        try:
            predictor.inputs.encode([example.row])
        except DlrunError as own:
            if own.message.startswith(example.place):
                return DlrunError(own.message, own.hint, Exit.DATA)
            counted = own.message.startswith("row 0")  # its only row; the user knows it by another number
            rest = own.message.removeprefix("row 0") if counted else f": {own.message}"
            return DlrunError(f"{example.place}{rest}", own.hint, Exit.DATA)
    return error


# ---------------------------------------------------------------- writing


def _print(predictions: list[Row], format: str) -> None:
    if format != "table":
        print(_text(predictions, format), end="")
        return
    result_console().print(_table(predictions))


def _table(predictions: list[Row]) -> Any:
    names = _columns(predictions)
    return table(names, [[_shown(row.get(name)) for name in names] for row in predictions])


def _columns(predictions: list[Row]) -> list[str]:
    """Every key in order of first appearance, where a prediction belongs before what it says."""
    names = dict.fromkeys(name for row in predictions for name in row)
    return sorted(names, key=lambda name: {"input": 0, "row": 1}.get(name, 2))


def _shown(value: Any) -> Any:
    """A value for a person: of a mapping of numbers the first three."""
    if isinstance(value, dict) and all(isinstance(inner, (int, float)) for inner in value.values()):
        parts = [f"{name} {number(inner)}" for name, inner in itertools.islice(value.items(), 3)]
        return "   ".join(parts) + ("   …" if len(value) > 3 else "")
    return _cell(value)


def _cell(value: Any) -> Any:
    """A value in one cell: mappings and lists as JSON."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, tuple)) else value


def _text(predictions: list[Row], format: str) -> str:
    if format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(predictions), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in predictions)
    return buffer.getvalue()


def _write(path: Path, predictions: list[Row], format: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            if format != "table":
                file.write(_text(predictions, format))
            else:
                from rich.console import Console

                Console(file=file, highlight=False, width=160).print(_table(predictions))
    except OSError as error:
        raise DlrunError(
            f"{path}: cannot be written: {error.strerror or error}", "choose another --output", Exit.DISK
        ) from error
