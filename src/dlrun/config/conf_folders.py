"""Where conf files lie: the user's folder, then the packaged one. Imports no hydra, so that listing is quick."""

from __future__ import annotations

import re
from pathlib import Path

from dlrun.errors import DlrunError


def packaged_conf() -> Path:
    """The conf folder that came with dlrun: inside the installed package, else the repository's."""
    package = Path(__file__).parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent.parent / "conf"


def user_conf(given: Path | None) -> Path | None:
    """--config-dir, else ./conf if there is one and it is not the packaged one.

    Raises: DlrunError if the given one is not a folder.
    """
    if given is not None and not given.expanduser().is_dir():
        raise DlrunError(f"--config-dir: {given} is not a folder")
    chosen = (given or Path("conf")).expanduser().absolute()
    return chosen if chosen.is_dir() and chosen.resolve() != packaged_conf().resolve() else None


def folders(config_dir: Path | None = None) -> list[Path]:
    """The conf folders in the order they are searched."""
    user = user_conf(config_dir)
    return [packaged_conf()] if user is None else [user, packaged_conf()]


def choices(group: str, config_dir: Path | None = None) -> list[str]:
    """The choices of a group in all conf folders, sorted."""
    found: set[str] = set()
    for folder in folders(config_dir):
        root = folder / group
        found |= {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")}
    return sorted(found)


def file_of(group: str, choice: str, config_dir: Path | None = None) -> Path | None:
    """The YAML of a choice, the user's before the packaged one; None if there is none."""
    paths = [folder / group / f"{choice}.yaml" for folder in folders(config_dir)]
    return next((path for path in paths if path.is_file()), None)


def comment(path: Path) -> str:
    """What a conf file says of itself: the text of its first comment line."""
    for line in _lines(path):
        if line.startswith("#") and not line.lstrip("# ").startswith("@package"):
            return line.lstrip("#").strip()
    return ""


def component_name(path: Path) -> str | None:
    """The component a conf file names at its top level, read without a YAML parser."""
    for line in _lines(path):
        if found := re.match(r"name:\s*[\"']?(\w+)", line):
            return found[1]
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # composing it says what is wrong; a listing goes on
        return []
