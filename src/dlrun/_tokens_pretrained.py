"""Where a pretrained vocabulary lies: a file, or with a model in a folder, a package or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dlrun import pretrained
from dlrun.errors import DlrunError, Exit

_SETTING = "data.pretrained"
_CONVERT = "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find(source: str, file: str) -> Path:
    """The file itself, or the one of this name where a model lies. ORG/NAME is a model on the hub, if it is no folder.

    Raises: DlrunError with code DATA where there is none.
    """
    if (path := Path(source).expanduser()).is_file():
        return path
    found = folder_of(source, [file]) / file
    if not found.is_file():
        hint = f"name a model that has one, or make it of what lies there: {_CONVERT}"
        raise DlrunError(f"{_SETTING}: {source} has no {file}", hint, Exit.DATA)
    return found


def folder_of(source: str, files: Sequence[str]) -> Path:
    """The folder in which these files of a vocabulary may lie: of a file, the one it lies in."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.parent
    if not path.exists() and _REPOSITORY.fullmatch(source):
        source = f"hub:{source}"
    return pretrained.folder(source, _SETTING, files)
