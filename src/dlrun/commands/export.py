"""`dlrun export`: a run's model as a file that others read, compared with the model before it is left behind.

The folder is written aside and renamed, so it is there whole or not at all; export.json in it says what was done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dlrun import runs
from dlrun.commands import _export_formats as formats
from dlrun.commands import _model_card
from dlrun.commands import _reading as reading
from dlrun.commands._terminal import TerminalReporter, number, print_json, result_console, table
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options

Format = Literal["onnx", "torch", "safetensors", "transformers", "mlflow"]
RECORD = "export.json"


def export(
    reference: str,
    options: Options,
    *,
    format: Format = "onnx",
    output: Path | None = None,
    check: bool = False,
    force: bool = False,
    license: str = "unknown",
) -> int:
    """Write a run's model into a folder. Returns the exit code.

    check: ask the file for all of validation, and compare the goal metric.   force: replace an earlier export.
    Raises: DlrunError; with code GATE, and no folder left, where what was written is not the model.
    """
    reporter = TerminalReporter()
    run = runs.find(options.runs, reference)
    target = output if output is not None else Path(f"{run.record.name or run.short_id}-{format}")
    _require_free(target, force)
    predictor = reading.load(run, options, reporter, "cpu")
    with _written_aside(target) as folder, reporter.console.status(f"exporting as {format}"):
        written = formats.write(format, predictor, folder, check)
        facts = _facts(run, predictor, format, written, license)
        runs.write_atomically(folder / "README.md", _model_card.text(run, predictor, facts))
        runs.write_json(folder / RECORD, facts)
    facts["output"] = str(target.absolute())
    if options.as_json:
        print_json(facts | {"run_dir": str(run.folder)})
    else:
        _show(facts)
    return 0


def _require_free(target: Path, force: bool) -> None:
    """Raises: DlrunError for a folder that is not ours to write."""
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise DlrunError(f"--output: {target} is there already", "choose another, or --force to replace an export")
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not (target / RECORD).is_file()):
        raise DlrunError(f"--output: {target} is no export of dlrun, and is not replaced", "choose another --output")


@contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which takes its place unless something is raised."""
    aside = target.absolute().with_name(f".{target.absolute().name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        yield aside
        if target.exists():
            old = aside.with_name(f"{aside.name}.old")
            os.replace(target, old)
            os.replace(aside, target)
            shutil.rmtree(old)
        else:
            os.replace(aside, target)
        runs.sync_folder(target.absolute().parent)
    except OSError as error:
        raise runs.disk_error(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _facts(run: runs.Run, predictor: Any, format: str, written: formats.Written, license: str) -> dict[str, Any]:
    """What export.json and --json hold."""
    return {
        "run_id": run.id,
        "format": format,
        "parents": [run.id],
        "step": getattr(predictor, "step", None),
        "license": license,
        "files": written.files,
        **written.facts,
    }


def _show(facts: dict[str, Any]) -> None:
    console = result_console()
    rows = [[name, f"{size:,}"] for name, size in facts["files"].items()]
    console.print(table(["file", "bytes"], rows))
    for what in ("inputs", "outputs"):
        for one in facts.get(what, ()):
            shape = ", ".join(map(str, one["shape"]))
            console.print(f"{what[:-1]:<8} {one['name']}  {one['type']} [{shape}]", soft_wrap=True)
    if "opset" in facts:
        console.print(f"opset    {facts['opset']}")
    if agreement := facts.get("agreement"):
        console.print(
            f"agrees   with the model within {agreement['worst']:.2g} (allowed {agreement['allowed']:.2g}) at "
            f"{agreement['compared']}",
            soft_wrap=True,
        )
    if check := facts.get("check"):
        console.print(
            f"check    {check['split']}/{check['metric']}: {number(check['exported'])} of the file, "
            f"{number(check['model'])} of the model",
            soft_wrap=True,
        )
    console.print(f"folder   {facts['output']}", soft_wrap=True)
