"""Reading a run's config back: data from outside, so refused before anything of it is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dlrun.config import convert
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit
from dlrun.registry import Registry
from dlrun.runs import write_atomically

_DEEPEST = 50  # levels; a run's config has four
# libyaml's where PyYAML was built with it: ten times as fast
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write(folder: Path, config: RunConfig) -> None:
    """Write config.yaml and config.sha256 into a run folder."""
    text = yaml.safe_dump(convert.to_plain(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", text)
    write_atomically(folder / "config.sha256", hashlib.sha256(text.encode()).hexdigest() + "\n")


def read(folder: Path, registry: Registry) -> RunConfig:
    """The config of a run folder, validated as if a user had typed it.

    Raises: DlrunError for a missing or changed file (code DATA), and for anything a config may not hold.
    """
    return convert.to_config(read_plain(folder), registry)


def read_plain(folder: Path) -> dict[str, Any]:
    """config.yaml as plain values: no tags, no `_target_`, no interpolation, no path as a component's name."""
    path = folder / "config.yaml"
    try:
        text = path.read_text()
        values = _plain_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DlrunError(f"{path}: cannot be read: {error}", code=Exit.DATA) from error
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DlrunError(f"{path}: is not plain YAML: {problem}", code=Exit.DATA) from error
    _refuse(values, path, "")
    digest = folder / "config.sha256"
    if digest.exists() and digest.read_text().strip() != hashlib.sha256(text.encode()).hexdigest():
        raise DlrunError(
            f"{path}: was changed after the run began (its SHA-256 differs)",
            "restore it, or start a new run with the change",
            Exit.DATA,
        )
    if not isinstance(values, dict):
        raise DlrunError(f"{path}: is not a config", code=Exit.DATA)
    return values


def _plain_yaml(text: str) -> Any:
    """Safe YAML, of little depth, and without aliases: a few lines of those can stand for more than memory holds."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        if depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
    return _SafeLoader(text).get_single_data()


def _refuse(value: Any, path: Path, where: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or (key.startswith("_") and key.endswith("_")):
                raise DlrunError(f"{path}: '{where}{key}' is not allowed in a run's config", code=Exit.DATA)
            _refuse(inner, path, f"{where}{key}.")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse(inner, path, f"{where}{index}.")
    elif isinstance(value, str) and "${" in value:
        raise DlrunError(
            f"{path}: '{where.rstrip('.')}' holds an interpolation; a run's config is resolved", code=Exit.DATA
        )
