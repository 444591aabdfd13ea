"""`dlrun show KIND NAME`: what a choice or a component is, where it is, and what can be set."""

from __future__ import annotations

import json
import shutil
import textwrap
import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from dlrun.commands import _catalogue as catalogue
from dlrun.config import conf_folders, schema
from dlrun.config.durations import Duration
from dlrun.errors import DlrunError, did_you_mean
from dlrun.registry import ROOMS, Component, Registry, meanings


@dataclass(frozen=True)
class Row:
    """One thing a user may set, as the command line writes it."""

    name: str
    type: str
    default: Any
    required: bool
    meaning: str


def show(kind: str, name: str, registry: Registry, config_dir: Path | None, *, as_json: bool) -> int:
    """Print a choice with its component, or a component alone. Raises: DlrunError with the nearest name."""
    kind = catalogue.checked_kind(kind)
    path = conf_folders.file_of(kind, name, config_dir)
    component = _component(kind, name, path, registry, config_dir)
    values = _values(path)
    found = _settings(kind, name, component, values) if kind != "experiment" else []
    if as_json:
        print(json.dumps(_as_json(kind, name, path, component, found), ensure_ascii=False, default=str))
    else:
        _print(kind, name, path, component, found)
    return 0


def _component(
    kind: str, name: str, path: Path | None, registry: Registry, config_dir: Path | None
) -> Component | None:
    """What a choice builds on, or the component of this name where there is no such choice."""
    if kind not in ROOMS:
        wanted = None
    elif path is None:
        wanted = name
    else:
        wanted = conf_folders.component_name(path)
    if path is None and (wanted is None or wanted not in registry.listing(kind)):
        known = {choice.name for choice in catalogue.choices(kind, config_dir)}
        known |= set(registry.listing(kind)) if kind in ROOMS else set()
        raise DlrunError(f"{kind}: there is no '{name}'", did_you_mean(name, known))
    if wanted is None or (kind == "transfer" and wanted == "none"):
        return None
    return registry.component(kind, wanted)


def _values(path: Path | None) -> dict[str, Any]:
    """What a conf file sets."""
    if path is None:
        return {}
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DlrunError(f"{path}: is not YAML: {getattr(error, 'problem', None) or error}") from error
    return values if isinstance(values, dict) else {}


# ---------------------------------------------------------------- settings


def _settings(kind: str, choice: str, component: Component | None, values: dict[str, Any]) -> list[Row]:
    """The component's own settings, then those common to its group; a choice's values are its defaults."""
    prefix = "data.augment." + component.name if kind == "augment" and component else kind
    if kind in schema.STACKS:
        prefix = f"{kind}.{choice}"
    own = []
    for setting in component.settings.values() if component else ():
        default = values.get(setting.name, setting.default)
        required = setting.required and setting.name not in values
        meaning = component.meanings.get(setting.name, "") if component else ""
        own.append(Row(f"{prefix}.{setting.name}", setting.expected, default, required, meaning))
    return own if kind == "augment" else own + _common(kind, values)


def _common(kind: str, values: dict[str, Any]) -> list[Row]:
    group = catalogue.group_class(kind)
    texts, hints = meanings(str(group.__doc__)), typing.get_type_hints(group, include_extras=True)
    rows = []
    for item in fields(group):
        key = item.metadata.get("key", item.name)
        if key in ("name", "options"):
            continue
        default = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
        default = values.get(key, str(default) if isinstance(default, Duration) else default)
        rows.append(Row(f"{kind}.{key}", type_of(hints[item.name]), default, False, texts.get(key, "")))
    return rows


def type_of(hint: Any) -> str:
    """A type of the schema as a person reads it, with its limits."""
    if typing.get_origin(hint) is Annotated:
        inner, limits = typing.get_args(hint)
        return f"{type_of(inner)}, {limits}"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (dict, list):
        return typing.get_origin(hint).__name__
    if options := typing.get_args(hint):
        return " or ".join(type_of(option) for option in options)
    return {type(None): "null", Duration: "duration"}.get(hint) or str(hint.__name__)


# ---------------------------------------------------------------- printing


def _as_json(kind: str, name: str, path: Path | None, component: Component | None, rows: list[Row]) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "about": _about(path, component), "conf": str(path) if path else None,
        "component": component.name if component else None, "file": str(component.path) if component else None,
        "settings": [vars(row) for row in rows],
    }  # fmt: skip


def _about(path: Path | None, component: Component | None) -> str:
    said = conf_folders.comment(path) if path else ""
    return said or (component.summary if component else "")


def _print(kind: str, name: str, path: Path | None, component: Component | None, rows: list[Row]) -> None:
    print(f"{kind} {name}: {_about(path, component)}")
    if component is not None:
        print(f"\n{_prose(component.doc)}\n\ncomponent  {component.path}{'  (yours)' if component.users else ''}")
    if path is not None:
        print(f"conf       {path}")
        print("\n" + textwrap.indent(path.read_text().rstrip(), "    "))
    if rows:
        print()
    width = max(60, shutil.get_terminal_size((100, 0)).columns)
    for row in rows:
        default = "required" if row.required else f"= {_written(row.default)}"
        print(f"  {row.name} {default}   ({row.type})")
        if row.meaning:
            print(textwrap.fill(row.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6))


def _prose(doc: str) -> str:
    """A docstring without its list of settings."""
    return doc.partition("Settings:")[0].strip()


def _written(value: Any) -> str:
    """A value as an override writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (list, dict)) or value == "" else str(value)
