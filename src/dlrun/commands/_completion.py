"""What the shell offers after TAB: groups, choices, settings, values and runs. Reads files, imports nothing heavy."""

from __future__ import annotations

import os
import re
import shlex
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from dlrun.commands import _catalogue as catalogue
from dlrun.config import conf_folders, schema
from dlrun.errors import DlrunError
from dlrun.registry import Registry, Setting, components_folder
from dlrun.runs import listing, runs_folder


def overrides(incomplete: str) -> list[str]:
    """`mod` -> model=, model.   `model=re` -> model=resnet20 …   `model.d` -> model.depth=   `train.precision=` -> …"""
    words = typed_words()
    word, cut = joined(incomplete, words)
    try:
        found = Offers(words).of(word)
    except DlrunError:  # what is wrong is said when the command runs
        return []
    return [text[cut:] for text in found]


def run_names(incomplete: str) -> list[str]:
    """`latest`, short ids and names of the runs."""
    given = _option(typed_words(), "--runs")
    known = ["latest"]
    for run in listing(runs_folder(Path(given) if given else None)):
        known += [run.short_id, *([run.record.name] if run.record.name else [])]
    return [name for name in dict.fromkeys(known) if name.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Groups and rooms."""
    return [kind for kind in catalogue.KINDS if kind.startswith(incomplete)]


def names(kind: str, incomplete: str) -> list[str]:
    """Choices and components of a kind."""
    if kind not in catalogue.KINDS:
        return []
    known = [choice.name for choice in catalogue.choices(kind, None)]
    known += [item.name for item in catalogue.components(kind, _registry([])) if not isinstance(item, DlrunError)]
    return [name for name in dict.fromkeys(known) if name.startswith(incomplete)]


# ---------------------------------------------------------------- the command line so far


def typed_words() -> list[str]:
    """The words before the cursor, the unfinished one included, as the shell's completion script hands them over."""
    if "COMP_WORDS" in os.environ:  # bash
        words = os.environ["COMP_WORDS"].split("\n")
        return words[: int(os.environ.get("COMP_CWORD", len(words))) + 1]
    try:
        return shlex.split(os.environ.get("_TYPER_COMPLETE_ARGS", ""))
    except ValueError:  # a quote is still open
        return os.environ.get("_TYPER_COMPLETE_ARGS", "").split()


def joined(incomplete: str, words: Sequence[str]) -> tuple[str, int]:
    """The unfinished override, and how many of its characters the shell keeps.

    bash takes `model=re` for the three words `model`, `=` and `re`, and replaces the last alone.
    """
    if "COMP_WORDS" not in os.environ or "=" not in words[-2:]:
        return incomplete, 0
    at = len(words) - 1 - words[::-1].index("=")
    before = "".join(words[at - 1 : at + 1])
    return before + incomplete, len(before)


def _option(words: Sequence[str], name: str) -> str | None:
    """The value of an option that stands before the cursor."""
    line = [word for word in words if word != "="]
    for index, word in enumerate(line[:-1]):
        if word == name:
            return line[index + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _registry(words: Sequence[str]) -> Registry:
    given = _option(words, "--components")
    return Registry(components_folder(Path(given) if given else None))


# ---------------------------------------------------------------- overrides


class Offers:
    """The overrides that may follow, given the words before the cursor."""

    def __init__(self, words: Sequence[str]) -> None:
        given = _option(words, "--config-dir") or _option(words, "-cd")
        self.config_dir = Path(given) if given else None
        self.registry = _registry(words)
        self.chosen = self._chosen(words)

    def of(self, word: str) -> list[str]:
        """Whole overrides that begin with this one. A single unfinished one comes with its values, so that the shell
        puts no space behind it."""
        key, equals, _ = word.partition("=")
        offered = self._values(key) if equals else self._keys(key)
        found = [text for text in offered if text.startswith(word)]
        if len(found) == 1 and found[0].endswith("="):
            found += self._values(found[0][:-1])
        return found

    def _chosen(self, words: Sequence[str]) -> dict[str, str]:
        """The choice of each group: as typed, else as run.yaml says."""
        found: dict[str, str] = {}
        for folder in conf_folders.folders(self.config_dir):
            if (path := folder / "run.yaml").is_file():
                found = dict(re.findall(r"^\s*- (\w+): (\w+)", path.read_text(), re.MULTILINE))
                break
        return found | dict(re.findall(r"(?<!\S)(\w+)=([\w/]+)(?!\S)", re.sub(r"\s=\s", "=", " ".join(words))))

    def _keys(self, key: str) -> list[str]:
        group = key.partition(".")[0]
        if "." not in key:
            plain = [item.name for item in fields(schema.RunConfig) if item.name not in schema.GROUPS]
            both = [group + end for group in schema.GROUPS for end in (("=",) if group == "experiment" else ("=", "."))]
            return both + [f"{name}=" for name in plain]
        names = [f"{group}.{name}=" for name in self._settings(group)]
        if key.startswith("data.augment."):
            for name in self.registry.listing("augment"):
                settings = self.registry.component("augment", name).settings
                names += [f"data.augment.{name}={{}}", *(f"data.augment.{name}.{setting}=" for setting in settings)]
        return names

    def _values(self, key: str) -> list[str]:
        if key in schema.GROUPS:
            return [f"{key}={choice}" for choice in conf_folders.choices(key, self.config_dir)]
        group, _, name = key.partition(".")
        if name.startswith("augment.") and name.count(".") == 2:
            _, component, name = name.split(".")
            values = _of_setting(self.registry.component("augment", component).settings.get(name))
        else:
            values = self._settings(group).get(name, [])
        return [f"{key}={value}" for value in values]

    def _settings(self, group: str) -> dict[str, list[str]]:
        """What can be set in a group, and the values worth offering."""
        if group not in schema.GROUPS or group == "experiment":
            return {}
        common = catalogue.group_class(group)
        hints = typing.get_type_hints(common)
        items = [item for item in fields(common) if item.name not in ("name", "options")]
        known = {item.metadata.get("key", item.name): _of_hint(hints[item.name], item.default) for item in items}
        path = conf_folders.file_of(group, self.chosen.get(group, ""), self.config_dir)
        name = conf_folders.component_name(path) if path and group in schema.COMPONENT_GROUPS else None
        if name is None or name == "none":
            return known
        own = self.registry.component(group, name).settings
        return {setting.name: _of_setting(setting) for setting in own.values()} | known


def _of_setting(setting: Setting | None) -> list[str]:
    if setting is None:
        return []
    if setting.choices:
        return [str(value) for value in setting.choices]
    return _plain(setting.default, boolean="bool" in setting.kinds)


def _of_hint(hint: Any, default: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return [str(value) for value in typing.get_args(hint)]
    return _plain(default, boolean=hint is bool)


def _plain(default: Any, *, boolean: bool) -> list[str]:
    """A default as an override writes it, where the shell needs no quotes for it."""
    if boolean:
        return ["true", "false"]
    return [str(default)] if isinstance(default, (int, float)) else ["null"] if default is None else []
