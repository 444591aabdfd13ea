"""`dlrun list [KIND]`: what there is to choose from, one line each. Reads files only, so it answers at once."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from dlrun.commands import _catalogue as catalogue
from dlrun.errors import DlrunError
from dlrun.registry import ROOMS, Registry


def list_components(kind: str | None, registry: Registry, config_dir: Path | None, *, as_json: bool) -> int:
    """Print the choices of every group, or of one with its components."""
    kinds = catalogue.KINDS if kind is None else (catalogue.checked_kind(kind),)
    found = {name: _of(name, registry, config_dir) for name in kinds}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for name, entry in found.items():
        _print_kind(name, entry, in_full=kind is not None)
    print("dlrun show KIND NAME says what can be set; * marks your own.")
    return 0


def _of(kind: str, registry: Registry, config_dir: Path | None) -> dict[str, list[dict[str, Any]]]:
    choices = [
        _row(item.name, item.about, item.users, item.path) | {"component": item.component}
        for item in catalogue.choices(kind, config_dir)
    ]
    components = []
    for item in catalogue.components(kind, registry):
        if isinstance(item, DlrunError):
            print(f"warning: {item.message}", file=sys.stderr)
        else:
            components.append(_row(item.name, item.summary, item.users, item.path))
    for path in registry.hidden(kind) if kind in ROOMS else ():
        print(f"warning: {path} is not used: dlrun has a {kind} '{path.stem}'; rename yours", file=sys.stderr)
    return {"choices": choices, "components": components}


def _row(name: str, about: str, users: bool, path: Path) -> dict[str, Any]:
    return {"name": name, "about": about, "yours": users, "file": str(path)}


def _print_kind(kind: str, entry: dict[str, list[dict[str, Any]]], *, in_full: bool) -> None:
    print(f"{kind}: {catalogue.about(kind)}")
    _print_rows(entry["choices"])
    named = {choice["component"] for choice in entry["choices"]}
    rest = [item for item in entry["components"] if in_full or item["name"] not in named]
    if rest and entry["choices"]:
        print(f"  components ({kind}.name):" if in_full else f"  without a conf file of their own ({kind}.name=NAME):")
    _print_rows(rest)
    print()


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """Names, a star for the user's own, and what they say of themselves, folded to the terminal."""
    if not rows:
        return
    width = max(20, *(len(row["name"]) for row in rows)) + 4
    columns = max(width + 30, shutil.get_terminal_size((120, 0)).columns)
    for row in rows:
        name = f"  {row['name']}{' *' if row['yours'] else ''}"
        text = textwrap.fill(row["about"], columns, initial_indent=f"{name:<{width}}", subsequent_indent=" " * width)
        print(text or name)
