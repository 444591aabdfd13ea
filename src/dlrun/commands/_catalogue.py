"""What there is to choose from: groups, their choices and their components, read from files alone."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

from dlrun.config import conf_folders, schema
from dlrun.errors import DlrunError, did_you_mean
from dlrun.registry import ROOMS, Component, Registry

KINDS = (*schema.GROUPS, *schema.VERBS, "augment")
_ABOUT = {
    "experiment": "A pinned run: several of the above at once.",
    "augment": "Operations on batches of training pictures: data.augment={flip: {}, mixup: {alpha: 0.2}}.",
}


@dataclass(frozen=True)
class Choice:
    """One conf file. component: the file of the room it names, if it names one."""

    name: str
    about: str
    component: str | None
    path: Path
    users: bool


def checked_kind(given: str) -> str:
    """A group or room by its name, or its folder's. Raises: DlrunError with the nearest one."""
    by_folder = {folder: kind for kind, folder in ROOMS.items()}
    kind = by_folder.get(given, given)
    if kind not in KINDS:
        raise DlrunError(f"no kind '{given}'", did_you_mean(given, KINDS))
    return kind


def about(kind: str) -> str:
    """One sentence on a kind."""
    return _ABOUT.get(kind) or str(group_class(kind).__doc__).partition("\n")[0]


def group_class(kind: str) -> type:
    """The dataclass of a group's common settings."""
    return schema.VERBS.get(kind) or typing.get_type_hints(schema.RunConfig)[kind]


def choices(kind: str, config_dir: Path | None) -> list[Choice]:
    """The conf files of a group; none for augment."""
    packaged = conf_folders.packaged_conf()
    found = []
    for name in conf_folders.choices(kind, config_dir):
        path = conf_folders.file_of(kind, name, config_dir)
        assert path is not None
        users = not path.is_relative_to(packaged)
        component = conf_folders.component_name(path) if kind in ROOMS else None
        found.append(Choice(name, conf_folders.comment(path), component, path, users))
    return found


def components(kind: str, registry: Registry) -> list[Component | DlrunError]:
    """The components of a room; a file that cannot be read as one gives its error."""
    if kind not in ROOMS:
        return []
    found: list[Component | DlrunError] = []
    for name in registry.listing(kind):
        try:
            found.append(registry.component(kind, name))
        except DlrunError as error:
            found.append(error)
    return found
