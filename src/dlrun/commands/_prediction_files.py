"""What a task says of examples beside rows: masks, pictures with boxes, one document over all; into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun import runs
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands._rows import Example
    from dlrun.contracts import Outputs
    from dlrun.predictor import TrainedModel


class PredictionFiles:
    """The files of one command, written as predictions are made, each under its own name at once or not at all."""

    def __init__(self, folder: Path, predictor: TrainedModel) -> None:
        """Raises: DlrunError if the task gives no files (code USAGE) or the folder cannot be made (DISK)."""
        from dlrun.contracts import WithFiles

        if not isinstance(predictor.task, WithFiles):
            raise DlrunError(
                f"--out: task '{predictor.config.task.name}' gives no files, only rows",
                "--output FILE writes the rows as csv or json lines",
            )
        self.folder, self.predictor, self.task = folder, predictor, predictor.task
        self.count = 0
        self._used: dict[str, int] = {}
        self._index: tuple[str, Any] | None = None
        self._seen = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _disk_error(folder, error.strerror or str(error)) from error

    def take(self, chunk: Sequence[Example], outputs: Outputs) -> None:
        """Write the files of these examples."""
        from dlrun.contracts import Outputs

        fields = {name: value.cpu() for name, value in outputs.fields.items()}
        names = [self._unique(self._stem(example)) for example in chunk]
        batch = self.predictor.inputs.encode([example.row for example in chunk])  # predictors keep no pictures
        for name, content in self.task.files(names, batch, Outputs(outputs.ids.cpu(), fields)):
            self._write(name, content)
        files = [self._file(example) or name for example, name in zip(chunk, names, strict=True)]
        name, document = self.task.index(names, files, Outputs(outputs.ids.cpu() + self._seen, fields))
        self._seen += len(names)
        self._index = (name, document if self._index is None else _joined(self._index[1], document))

    def finish(self) -> None:
        """Write the document over all examples."""
        if self._index is not None:
            name, document = self._index
            self._write(name, _json(document).encode())

    def _stem(self, example: Example) -> str:
        """What an example's files are called after: its picture's file, else its table and row."""
        file = self._file(example)
        return Path(file).stem if file else f"{Path(example.file).stem}-{example.number}"

    def _file(self, example: Example) -> str:
        """The name of an example's own file; empty where it has none."""
        if example.number is None:
            return Path(example.file).name
        given = example.row.get(self.predictor.spec.assets.get("image_column", "image"), example.row.get("image"))
        path = given.get("path") if isinstance(given, Mapping) else given
        return Path(path).name if path and isinstance(path, str) else ""

    def _unique(self, stem: str) -> str:
        """The stem, or with a number behind it where it was given away; without regard to case, as some disks are."""
        name = stem
        while name.lower() in self._used:
            self._used[stem.lower()] = number = self._used.get(stem.lower(), 1) + 1
            name = f"{stem}-{number}"
        self._used[name.lower()] = 1
        return name

    def _write(self, name: str, content: bytes) -> None:
        try:
            runs.write_atomically(self.folder / name, content)
        except DlrunError as error:
            raise DlrunError(error.message, "choose another --out", error.code) from error
        self.count += 1


def _joined(first: Any, second: Any) -> Any:
    """Two parts of a document as one: lists of objects (or of lists) one after the other, all else from the first."""
    if isinstance(first, dict):
        return {key: _joined(value, second[key]) for key, value in first.items()}
    if not isinstance(first, list) or not all(isinstance(entry, (dict, list)) for entry in (*first, *second)):
        return first
    is_numbered = all(isinstance(entry, dict) and "id" in entry for entry in second)
    if not is_numbered or first[: len(second)] != second:  # else they are in every part, as categories are
        first.extend(second)  # in place: there may be millions
    return first


def _json(document: Any) -> str:
    """JSON with each entry of a list on a line of its own, as there may be a hundred of them for each picture."""
    if isinstance(document, dict):
        parts = (f"{json.dumps(key, ensure_ascii=False)}: {_lines(value)}" for key, value in document.items())
        return "{\n" + ",\n".join(parts) + "\n}\n"
    return _lines(document) + "\n"


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not any(isinstance(entry, (dict, list)) for entry in value):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in value) + "\n]"


def _disk_error(folder: Path, reason: str) -> DlrunError:
    return DlrunError(f"{folder}: cannot be written: {reason}", "choose another --out", Exit.DISK)
