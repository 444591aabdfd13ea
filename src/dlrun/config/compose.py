"""Overrides and conf folders to one resolved mapping. The only file that imports hydra and omegaconf.

Hydra composes, and decides nothing: legality is schema.py's. A group choice goes to Hydra as it is; a plain
`a.b=v` goes as `++a.b=v`, so that Hydra's advice to append with `+` never hides a typo.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    RangeSweep,
)
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlrun.config.conf_folders import choices, folders, packaged_conf, user_conf
from dlrun.config.schema import GROUPS, STACKS, VERBS
from dlrun.config.secrets import is_secret_name
from dlrun.config.space import Dimension
from dlrun.errors import DlrunError, did_you_mean

PRIMARY = "run"
_VERB_OF = {"search": "dlrun sweep", "compression": "dlrun compress", "ensemble": "dlrun ensemble"}
_user_conf = threading.local()


@dataclass(frozen=True)
class Composed:
    """A resolved config as plain values, and where each leaf came from ("model.depth" -> "conf/model/…").

    notes: what of an experiment was left out, a sentence for each group."""

    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    verb: dict[str, Any] = field(default_factory=dict)  # of the verb's own group, where one was asked for
    notes: tuple[str, ...] = ()


class _UserConfFirst(SearchPathPlugin):
    """Puts the user's conf folder before the packaged one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder = getattr(_user_conf, "folder", None)
        if folder is not None:
            search_path.prepend("user", f"file://{folder}")


def compose(
    overrides: Sequence[str], *, config_dir: Path | None = None, origins: bool = False, verb: str | None = None
) -> Composed:
    """Compose conf/run.yaml with a command line's overrides.

    verb: a verb's own group ("search=tpe") that is composed too, kept apart from the run's config.
    Raises: DlrunError for a broken override or YAML file, an unknown choice, an interpolation to nowhere,
    a sweep value, `hydra.*`.
    """
    with _hydra(config_dir):
        parsed = [_parse(text) for text in overrides]
        lines = _with_verb([_as_hydra_wants(item, config_dir) for item in parsed], verb)
        with _plain_errors():
            config, left_out = _composed(lines, config_dir)
            values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        found = _origins(lines, parsed, left_out) if origins else {}
    whole = {str(key): value for key, value in values.items()}
    verbs = {group: whole.pop(group) for group in VERBS if group in whole}  # an experiment may hold some for later
    return Composed(whole, found, verbs.get((verb or "").partition("=")[0], {}), tuple(left_out.values()))


def _composed(lines: list[str], config_dir: Path | None) -> tuple[DictConfig, dict[str, str]]:
    """What Hydra composes of these overrides, and a sentence for each group whose settings an experiment loses.

    Its slow part depends on the chosen groups alone and is kept, for the trials of a sweep; values are set on a copy.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create()
    chosen, others = [], []
    for item in (parser.parse_override(line) for line in lines):
        is_choice = loader.repository.group_exists(item.key_or_group) and not isinstance(item.value(), dict)
        (chosen if is_choice else others).append(item)
    kept, left_out = _of_groups(tuple(item.input_line or "" for item in chosen), _stamp(config_dir))
    config = copy.deepcopy(kept)
    for item in others:
        if _empties(item):
            OmegaConf.update(config, item.key_or_group, {}, merge=False, force_add=True)
        else:
            ConfigLoaderImpl._apply_overrides_to_config([item], config)  # as Hydra itself does after its defaults lists
    return config, left_out


def _empties(item: Override) -> bool:
    """Whether it says that a mapping is to be empty: Hydra would merge nothing into it."""
    return item.type is not OverrideType.DEL and item.value() == {}


@functools.lru_cache(maxsize=64)
def _of_groups(lines: tuple[str, ...], stamp: tuple) -> tuple[DictConfig, dict[str, str]]:
    """Composed of choices of groups. stamp: of the conf files that it stands for; a changed file is read anew.

    What an experiment sets in a group is meant for the choice that it makes there: with another it is left out, and
    a sentence by the group's name says so.
    """
    config, left_out = hydra_compose(config_name=PRIMARY, overrides=list(lines)), {}
    experiments = [line for line in lines if line.startswith("experiment=")]
    if experiments and (typed := _other_choices(lines, experiments[-1])):
        others = [line for line in lines if line not in experiments]
        without = hydra_compose(config_name=PRIMARY, overrides=others)
        for group, choice in typed.items():
            before, after = (_unresolved(whole[group]) for whole in (config, without))
            if lost := [f"{group}.{name}" for name, value in before.items() if after.get(name, ...) != value]:
                left_out[group] = f"with {group}={choice}, what {experiments[-1]} sets is left out: {', '.join(lost)}"
                config[group] = without[group]
    return config, left_out


def _other_choices(lines: Sequence[str], experiment: str) -> dict[str, str]:
    """The choices that are typed beside an experiment, where it makes another."""
    loader: Any = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name=PRIMARY, overrides=[experiment], run_mode=RunMode.RUN)
    typed = dict(line.split("=", 1) for line in lines if line.split("=")[0] in GROUPS and line != experiment)
    own = defaults.overrides.known_choices
    return {group: choice for group, choice in typed.items() if choice != own.get(group)}


def _unresolved(node: Any) -> dict[str, Any]:
    """The leaves of a group as they are written."""
    return leaves(OmegaConf.to_container(node, resolve=False)) if isinstance(node, DictConfig) else {}  # type: ignore[arg-type]


def _stamp(config_dir: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of every conf file: 2 ms for 200, where composing takes 200."""
    walks = [walk for folder in folders(config_dir) for walk in os.walk(folder)]
    stamped = []
    for path in (os.path.join(at, name) for at, _, names in walks for name in names if name.endswith(".yaml")):
        with contextlib.suppress(OSError):  # gone meanwhile, or a link to nowhere: an editor's lock
            found = os.stat(path)
            stamped.append((path, found.st_mtime_ns, found.st_size))
    return tuple(stamped)


def _with_verb(lines: list[str], verb: str | None) -> list[str]:
    """The overrides with the verb's own group chosen. Raises: DlrunError for a group of another verb."""
    group = (verb or "").partition("=")[0]
    for line in lines:
        other = line.lstrip("+").partition("=")[0].rpartition("@")[2].split(".")[0]
        if other in VERBS and other != group:
            raise DlrunError(f"'{line.lstrip('+')}': {other} is not for this command", f"see: {_VERB_OF[other]} --help")
    if not verb:
        return lines
    chosen = [line for line in lines if line.startswith(f"{group}=")] or [verb]
    if chosen[-1] == group:
        raise DlrunError(f"{group}: nothing is chosen", f"{group}=NAME or {group}=[NAME,NAME]; see: dlrun list {group}")
    return [f"+{chosen[-1]}", *(line for line in lines if not line.startswith(f"{group}="))]


def compose_on(base: Mapping[str, Any], overrides: Sequence[str], *, config_dir: Path | None = None) -> Composed:
    """Apply overrides to a run's resolved config: its conf folder is not needed; a chosen group replaces its node."""
    values = {key: value for key, value in base.items()}
    with _hydra(config_dir):
        parsed = [_parse(text) for text in overrides]
        groups = [item for item in parsed if _is_group(item)]
        for item in groups:
            _as_hydra_wants(item, config_dir)
        if groups:
            chosen = compose([item.input_line or "" for item in groups], config_dir=config_dir).values
            values |= {item.key_or_group: chosen[item.key_or_group] for item in groups}
    plain = [item for item in parsed if not _is_group(item)]
    with _plain_errors():
        config = OmegaConf.create(dict(values))
        for item in plain:
            if item.type is OverrideType.DEL:
                raise DlrunError(
                    f"'{item.input_line}': nothing can be deleted from a run's config", "set a value instead"
                )
            OmegaConf.update(config, item.key_or_group, _value(item), merge=not _empties(item), force_add=True)
        resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return Composed({str(key): value for key, value in resolved.items()})


# ---------------------------------------------------------------- overrides


def split_sweep(
    overrides: Sequence[str], space: Mapping[str, Any] | None = None, *, config_dir: Path | None = None
) -> tuple[list[str], list[Dimension]]:
    """A command line's overrides with one value, and a dimension for each with several.

    space: further dimensions as `search.space` has them; a setting that the command line names is left out.
    Raises: DlrunError for what cannot be read.
    """
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    with _hydra(config_dir):
        named = set()
        for text in overrides:
            item = _parse(text, sweep=True)
            named.add(item.key_or_group)
            if item.is_sweep_override():
                dimensions.append(_dimension(item, config_dir))
            else:
                fixed.append(text)
        for key, value, when in _entries(space or {}):
            if key not in named:
                dimensions.append(_dimension(_parse(f"{key}={value}", sweep=True), config_dir, when))
    return fixed, dimensions


def _entries(space: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[str, str] | None]]:
    """(setting, values, when) of `search.space`; nested mappings count as dotted names."""
    conditional = space.get("when") or {}
    plain = {key: value for key, value in space.items() if key != "when"}
    yield from ((key, value, None) for key, value in leaves(plain).items())
    form = "{model: {resnet20: {model.width: 'choice(16,32)'}}}"
    if not isinstance(conditional, Mapping):
        raise DlrunError("search.space.when: is not a mapping", form)
    for group, by_choice in conditional.items():
        if not isinstance(by_choice, Mapping) or not all(isinstance(entry, Mapping) for entry in by_choice.values()):
            raise DlrunError(f"search.space.when.{group}: '{by_choice}' does not say which settings vary", form)
        for choice, entries in by_choice.items():
            yield from ((key, value, (str(group), str(choice))) for key, value in leaves(entries).items())


def _dimension(item: Override, config_dir: Path | None, when: tuple[str, str] | None = None) -> Dimension:
    key, value = item.key_or_group, item.value()
    log = _is_log(item)
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0.0), float(value.end or 0.0)
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return Dimension(key, "int" if whole else "float", low=low, high=high, log=log, when=when)
    if isinstance(value, RangeSweep):
        numbers = list(value.range())
        if not numbers:
            raise DlrunError(f"'{item.input_line}': the range is empty", "its stop is not part of it")
        if all(isinstance(number, int) for number in numbers) and numbers == sorted(numbers):
            step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
            if len(numbers) > 1 and not (log and step > 1):
                return Dimension(key, "int", low=numbers[0], high=numbers[-1], step=int(step), log=log, when=when)
        if log:
            raise DlrunError(f"'{item.input_line}': only steps of 1 are drawn on a log scale", "or use interval(…)")
        return Dimension(key, "choice", tuple(str(number) for number in numbers), when=when)
    if isinstance(value, Glob):
        found = value.filter(choices(key, config_dir))
        if not found:
            raise DlrunError(f"'{item.input_line}': no choice of {key} fits", f"see: dlrun list {key}")
        return Dimension(key, "choice", tuple(found), when=when)
    if isinstance(value, ChoiceSweep):
        texts = tuple(item._get_value_element_as_str(one) for one in value.list)
        if key in GROUPS:
            known = choices(key, config_dir)
            for text in texts:
                if text not in known:
                    raise DlrunError(f"{key}: no choice '{text}'", did_you_mean(text, known))
        return Dimension(key, "choice", texts, when=when)
    raise DlrunError(f"{key}: '{value}' is one value, not a space", "choice(…), range(…) or interval(…)")


def _is_log(item: Override) -> bool:
    """Whether an override's values are tagged "log". Raises: DlrunError for a tag that would say nothing."""
    value: Any = item.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := sorted(tags - {"log"}):
        raise DlrunError(
            f"'{item.input_line}': unknown tag '{unknown[0]}'", "the only one is log: tag(log, interval(…))"
        )
    if tags and not isinstance(value, (IntervalSweep, RangeSweep)):
        raise DlrunError(f"'{item.input_line}': single values have no scale", "leave out tag(log, …)")
    return bool(tags)


def _parse(text: str, sweep: bool = False) -> Override:
    if text.startswith("-"):
        raise DlrunError(f"unknown option '{text}'", "options go before or after overrides; see --help")
    try:
        item = OverridesParser.create().parse_override(text)
    except (OverrideParseException, HydraException) as error:
        raise DlrunError(
            f"override '{text}' cannot be read: {_first_line(error)}",
            "write key=value; quote what the shell or Hydra would read: 'key=\"a b\"'",
        ) from error
    key = item.key_or_group
    if key.split(".")[0] == "hydra":
        raise DlrunError(f"'{text}': hydra.* is not set here", "dlrun uses Hydra to compose only")
    if item.is_sweep_override() and not sweep:
        or_sweep = "" if key.split(".")[0] in VERBS else f", or: dlrun sweep '{text}'"
        raise DlrunError(f"'{text}' holds several values: that is a sweep", f"one value for {key}{or_sweep}")
    if item.type is not OverrideType.DEL and text.endswith("=") and item.value() == "":
        raise DlrunError(f"'{text}' has no value", f"{key}=null where nothing is meant")
    return item


def _is_group(item: Override) -> bool:
    return item.key_or_group in GROUPS or item.key_or_group in VERBS


def _as_hydra_wants(item: Override, config_dir: Path | None) -> str:
    """The override as Hydra is to get it; an unknown choice of a group is refused here."""
    line = (item.input_line or "").lstrip("+")
    if not _is_group(item):
        return line if item.type is OverrideType.DEL else f"++{line}"
    if item.type is not OverrideType.DEL:
        value, group = item.value(), item.key_or_group
        stack = value if isinstance(value, list) and group in STACKS else [value]
        if isinstance(value, dict) or (isinstance(value, list) and stack is not value):
            raise DlrunError(f"'{line}': {group} takes one choice", f"see: dlrun list {group}")
        if twice := next((step for step in stack if stack.count(step) > 1), None):
            raise DlrunError(f"'{line}': {twice} is named twice", "a step has one place in a stack")
        known = choices(group, config_dir)
        for choice in stack:
            if choice is not None and str(choice) not in known:
                raise DlrunError(f"{group}: no choice '{choice}'", did_you_mean(str(choice), known))
    # A group put into a step's settings (model@compression.distill.student=resnet20) stands in no defaults list.
    return f"+{line}" if (item.package or "").split(".")[0] in STACKS else line


def _value(item: Override) -> Any:
    value = item.value()
    return OmegaConf.create(value) if isinstance(value, (dict, list)) else value


# ---------------------------------------------------------------- hydra's state and errors


@contextlib.contextmanager
def _hydra(config_dir: Path | None) -> Iterator[None]:
    """Hydra initialised on the packaged conf with the user's before it; nested calls share it."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    _user_conf.folder = user_conf(config_dir)
    Plugins.instance().register(_UserConfFirst)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    with initialize_config_dir(config_dir=str(packaged_conf()), version_base="1.3", job_name="dlrun"):
        yield


def _environment(name: str, *default: str | None) -> str | None:
    """oc.env, but never of a secret: a config is written to the run and to the tracker."""
    if is_secret_name(name):
        raise DlrunError(
            f"${{oc.env:{name}}}: the name says it is a secret, and configs are recorded",
            "leave it in the environment; libraries read it there",
        )
    value = os.environ.get(name, *default[:1]) if default else os.environ.get(name)
    if value is None and not default:
        raise DlrunError(f"the config needs the environment variable {name}", f"export {name}=…")
    return value


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Hydra's, OmegaConf's and YAML's exceptions as one sentence."""
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{_file_of(mark)}:{mark.line + 1}" if mark else "a conf file"
        raise DlrunError(f"{where}: is not YAML: {getattr(error, 'problem', None) or error}") from error
    except ConfigCompositionException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, DlrunError):
            raise cause from None
        raise DlrunError(_first_line(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error.__context__
        while cause is not None and not isinstance(cause, DlrunError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise DlrunError(f"config: {_first_line(error)}") from error


def _file_of(mark: Any) -> str:
    name = str(getattr(mark, "name", "")).strip("<>")
    return re.sub(r"^file://", "", name) or "a conf file"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(".") if lines else type(error).__name__


# ---------------------------------------------------------------- origins


def _origins(lines: list[str], parsed: list[Override], left_out: Mapping[str, str]) -> dict[str, str]:
    """Where each leaf was last set: the conf files in the order Hydra merges them, then the command line.

    left_out: groups in which nothing is from the experiment.
    """
    loader: Any = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(config_name=PRIMARY, overrides=lines, run_mode=RunMode.RUN)
    found: dict[str, str] = {}
    for default in defaults.defaults:
        loaded = loader.repository.load_config(default.config_path) if default.config_path else None
        if loaded is None or default.config_path.startswith(("hydra", "_dummy")):
            continue
        root = str(loaded.path or "").removeprefix("file://")
        origin = f"{loaded.provider}: {Path(root) / default.config_path}.yaml".replace("main: ", "packaged: ", 1)
        package = "" if default.package in ("", "_global_", None) else f"{default.package}."
        body: Any = OmegaConf.to_container(loaded.config, resolve=False)
        skipped = {"defaults", *(left_out if default.config_path.startswith("experiment/") else ())}
        for name in leaves({key: value for key, value in body.items() if key not in skipped}):
            found[package + name] = origin
    for item in parsed:
        if item.type is not OverrideType.DEL and not _is_group(item):
            value = item.value()
            names = leaves(value, item.key_or_group + ".") if isinstance(value, dict) and value else [item.key_or_group]
            found |= dict.fromkeys(names, f"command line: {item.input_line}")
    return found


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names of a nested mapping's leaves; an empty mapping is a leaf."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
