"""Plain values to the frozen dataclasses of schema.py: collects every problem, offers the right spelling."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, Union

from dlrun.config import schema
from dlrun.config.copies import require_independent
from dlrun.config.durations import Duration
from dlrun.errors import DlrunError, did_you_mean, nearest
from dlrun.registry import Component, Registry, Setting

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "a mapping",
          list: "a list", tuple: "a list", types.NoneType: "null",
          Duration: 'a duration such as "10 epochs"'}  # fmt: skip
_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "tuple": tuple,
                           "dict": dict, "None": types.NoneType}  # fmt: skip


class Problems:
    """What is wrong with a config, gathered so that the user hears of all of it at once."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def add(self, message: str, hint: str = "") -> None:
        """Note one problem."""
        self.found.append((message, hint))

    def raise_if_any(self) -> None:
        """Raises: DlrunError of all that was noted, if anything was."""
        if not self.found:
            return
        (first, hint), rest = self.found[0], self.found[1:]
        lines = [first] + [f"{message}" + (f" ({hint})" if hint else "") for message, hint in rest]
        raise DlrunError("\n       ".join(lines), hint)


def to_config(values: Mapping[str, Any], registry: Registry) -> schema.RunConfig:
    """A resolved mapping to a RunConfig. Raises: DlrunError with every wrong key, type and range."""
    problems = Problems()
    config = _to_dataclass(schema.RunConfig, values, "", problems, registry)
    problems.raise_if_any()
    require_independent(config)
    return config


def to_verb(group: str, values: Any, registry: Registry) -> Any:
    """The settings of a verb's own group (`search`). Raises: DlrunError as `to_config`."""
    problems = Problems()
    config = _to_dataclass(schema.VERBS[group], values, f"{group}.", problems, registry)
    problems.raise_if_any()
    return config


def to_stack(group: str, values: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """The settings of each step of a verb's stack (`compression`), in order. Raises: DlrunError as `to_config`."""
    problems = Problems()
    if isinstance(values.get("name"), str):
        where = f"conf/{group}/{values['name']}.yaml"
        raise DlrunError(f"{where}: does not say whose settings it holds", f"add '# @package {group}.{values['name']}'")
    steps = {}
    for step, given in values.items():
        if not isinstance(given, Mapping):
            owners = [name for name, other in values.items() if isinstance(other, Mapping) and "name" in other]
            problems.add(
                f"unknown setting '{group}.{step}'",
                "the settings of a step stand below its name: "
                + ", ".join(f"{group}.{name}.{step}" for name in owners),
            )
        elif "name" not in given:
            problems.add(f"'{group}.{step}': {step} is no step of this stack", f"add it: {group}=[…,{step}]")
        else:
            steps[str(step)] = _to_dataclass(schema.VERBS[group], given, f"{group}.{step}.", problems, registry)
    problems.raise_if_any()
    return steps


def to_model(values: Any, registry: Registry) -> schema.ModelConfig:
    """A `model` group by itself: of a student. Raises: DlrunError as `to_config`."""
    problems = Problems()
    config = _to_dataclass(schema.ModelConfig, values, "model.", problems, registry)
    problems.raise_if_any()
    return config


def to_plain(config: Any) -> Any:
    """The inverse: plain values with component settings beside their common ones, as a user writes them."""
    if isinstance(config, Duration):
        return config.text
    if is_dataclass(config):
        plain: dict[str, Any] = {}
        for item in fields(config):
            value = to_plain(getattr(config, item.name))
            plain |= value if item.name == "options" else {_key(item): value}
        return plain
    if isinstance(config, Mapping):
        return {name: to_plain(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    return config


def _key(item: Field) -> str:
    return item.metadata.get("key", item.name)


def _to_dataclass(kind: type, values: Any, where: str, problems: Problems, registry: Registry) -> Any:
    if not isinstance(values, Mapping):
        problems.add(f"{where.rstrip('.')}: {values!r} was given, a group of settings is expected")
        return None
    known = {_key(item): item for item in fields(kind) if item.name != "options"}
    group = where.rstrip(".")
    room, _, step = group.partition(".")
    has_component = group in schema.COMPONENT_GROUPS or (room in schema.VERBS and (room in schema.STACKS) == bool(step))
    component = _component(room, values, registry, problems) if has_component else None
    settings = component.settings if component else {}
    for name in known.keys() & settings.keys():
        problems.add(
            f"{component.path if component else where}: build(…, {name}) hides the common setting {where}{name}",
            "give it another name",
        )
    if not has_component or component or values.get("name") == "none":
        for name in values:
            if name not in known and name not in settings:
                problems.add(*_unknown(where, str(name), [*known, *settings], component))
    hints = typing.get_type_hints(kind, include_extras=True)
    made: dict[str, Any] = {}
    for name, item in known.items():
        if name in values:
            made[item.name] = _to_type(hints[item.name], values[name], where + name, problems, registry)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.add(f"{where}{name}: is missing", f"set {where}{name}=…")
    if component:
        made["options"] = _options(component, {k: v for k, v in values.items() if k not in known}, where, problems)
    if where == "data." and isinstance(made.get("augment"), Mapping):
        made["augment"] = _augment(made["augment"], registry, problems)
    return kind(**made) if not problems.found else None


def _unknown(where: str, name: str, known: list[str], component: Component | None) -> tuple[str, str]:
    """The problem with a key that is no setting, and its cure."""
    if where + name == "experiment":
        return (
            "an experiment's file must say that it is about the whole run",
            "make '# @package _global_' its first line",
        )
    of = f" of {component.kind} '{component.name}'" if component else ""
    return f"unknown setting '{where}{name}'{of}", _nearest_setting(where, name, known)


def _nearest_setting(where: str, name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint.replace("did you mean ", f"did you mean {where}") if hint.startswith("did you mean") else hint


def _component(kind: str, values: Mapping[str, Any], registry: Registry, problems: Problems) -> Component | None:
    name = values.get("name")
    if name == "none" and kind == "transfer":
        return None
    if not isinstance(name, str) or not name.isidentifier():
        problems.add(f"{kind}.name: {name!r} is not the name of a component", f"see: dlrun list {kind}")
        return None
    try:
        return registry.component(kind, name)
    except DlrunError as error:
        problems.add(error.message, error.hint)
        return None


def _augment(given: Mapping[str, Any], registry: Registry, problems: Problems) -> dict[str, Any]:
    made = {}
    for name, values in given.items():
        where = f"data.augment.{name}"
        try:
            component = registry.component("augment", str(name))
        except DlrunError as error:
            problems.add(f"unknown augmentation '{where}'", error.hint)
            continue
        if values is None or values is False:  # switched off by an override
            continue
        values = {} if values is True else values
        if not isinstance(values, Mapping):
            problems.add(f"{where}: {values!r} was given, its settings are expected", f"e.g. '{where}={{}}'")
            continue
        made[name] = _options(component, values, where + ".", problems)
    return made


def _options(component: Component, values: Mapping[str, Any], where: str, problems: Problems) -> dict[str, Any]:
    """A component's settings with its signature's defaults filled in, so that the run records them."""
    for name in values:
        if name not in component.settings and where.startswith("data.augment."):
            problems.add(*_unknown(where, str(name), list(component.settings), None))
    made = {}
    for name, setting in component.settings.items():
        if name in values:
            made[name] = _to_setting(setting, values[name], where + name, problems)
        elif setting.required:
            problems.add(f"{where}{name}: is missing", f"set {where}{name}=…")
        else:
            made[name] = to_plain(setting.default)  # a copy of its own; a tuple is a list, as it is read back
    return made


def _to_setting(setting: Setting, value: Any, where: str, problems: Problems) -> Any:
    if value in setting.choices and type(value) in map(type, setting.choices):
        return value
    for kind in setting.kinds:
        if (made := _plain(_TYPES[kind], value)) is not _WRONG:
            return made
    hint = _meant(value, setting.choices) or (_quoting(where, value) if "str" in setting.kinds else "")
    problems.add(f"{where}: {_shown(value)} was given, {_expected(setting)} is expected", hint)
    return None


def _expected(setting: Setting) -> str:
    words = [f"one of {', '.join(map(str, setting.choices))}"] if setting.choices else []
    return " or ".join(words + [_WORDS[_TYPES[kind]] for kind in setting.kinds])


_WRONG = object()


def _plain(kind: type, value: Any) -> Any:
    """The value as this type, or _WRONG. An int is a number; NaN is none; text is never turned into one."""
    if kind is float and value != value:
        return _WRONG
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        return list(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) and kind is not bool:
        return _WRONG
    return value if isinstance(value, kind) else _WRONG


def _to_type(hint: Any, value: Any, where: str, problems: Problems, registry: Registry) -> Any:
    """A value as an annotated type of the schema; notes the problem and returns None where it is not."""
    if typing.get_origin(hint) is Annotated:
        inner, limits = typing.get_args(hint)
        made = _to_type(inner, value, where, problems, registry)
        if isinstance(made, (int, float)) and not limits.holds(made):
            problems.add(f"{where}: {_shown(value)} was given, {limits} is expected")
        return made
    if is_dataclass(hint) and isinstance(hint, type) and hint is not Duration:
        return _to_dataclass(hint, value, where + ".", problems, registry)
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        made = _to_option(option, value, where, problems)
        if made is not _WRONG:
            return made
    choices = [
        choice for option in options if typing.get_origin(option) is Literal for choice in typing.get_args(option)
    ]
    words = [f"one of {', '.join(choices)}"] if choices else [_WORDS[typing.get_origin(o) or o] for o in options]
    hint = _meant(value, choices) or (_quoting(where, value) if str in options else "")
    if isinstance(value, str) and list in map(typing.get_origin, options):
        hint = f"one in a list: {where}=[{value}]"
    problems.add(f"{where}: {_shown(value)} was given, {' or '.join(words)} is expected", hint)
    return None


def _meant(value: Any, choices: Sequence[Any]) -> str:
    """The nearest choice, as a question; nothing if none is near (the message lists them all)."""
    close = nearest(value, map(str, choices)) if isinstance(value, str) else None
    return f"did you mean {close}?" if close else ""


def _quoting(where: str, value: Any) -> str:
    """How to write what looks like a number, or true or false, where text is wanted."""
    return f"""quote it: '{where}="{_shown(value)}"'""" if isinstance(value, (bool, int, float)) else ""


def _to_option(option: Any, value: Any, where: str, problems: Problems) -> Any:
    if typing.get_origin(option) is Literal:
        return value if value in typing.get_args(option) else _WRONG
    if option is Duration and isinstance(value, str):
        try:
            return Duration.parse(value)
        except DlrunError as error:
            problems.add(f"{where}: {error.message}", error.hint)
            return None
    return _plain(typing.get_origin(option) or option, value)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
