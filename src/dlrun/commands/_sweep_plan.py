"""What a sweep is to try: the fixed overrides, the space, the search. Checked before the first trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.config import conf_folders, convert, space
from dlrun.config.compose import compose, split_sweep
from dlrun.config.schema import COMPONENT_GROUPS, GROUPS, RunConfig, SearchConfig
from dlrun.config.space import Dimension
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_FILE = "sweep.json"
DEFAULT = "search=tpe"
_SOURCE = "transfer.from"
_WHAT_IS_REPORTED = ("task", "data")  # settings that decide which metrics a trial has


@dataclass(frozen=True)
class Plan:
    """fixed: overrides that all trials share.   space: the settings that vary.   config_dir: of the user, or None."""

    fixed: list[str]
    space: list[Dimension]
    search: SearchConfig
    config_dir: Path | None

    @property
    def varies_metrics(self) -> bool:
        """Whether one trial may report a metric that another does not."""
        return any(dimension.key.partition(".")[0] in _WHAT_IS_REPORTED for dimension in self.space)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `from_json`."""
        return {
            "fixed": self.fixed,
            "space": [dimension.to_json() for dimension in self.space],
            "search": convert.to_plain(self.search) | {"options": self.search.options},
            "config_dir": str(self.config_dir) if self.config_dir else None,
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> Plan:
        """The inverse."""
        search = dict(stored["search"])
        options = search.pop("options")
        known = {name: value for name, value in search.items() if name not in options}
        return Plan(
            stored["fixed"],
            [Dimension.from_json(dimension) for dimension in stored["space"]],
            SearchConfig(**known, options=options),
            Path(stored["config_dir"]) if stored["config_dir"] else None,
        )

    def write(self, folder: Path) -> None:
        """Into the sweep's folder."""
        runs.write_json(folder / _FILE, self.to_json())

    @staticmethod
    def read(folder: Path) -> Plan:
        """From there. Raises: DlrunError for a sweep that was killed before it was written."""
        if not (folder / _FILE).exists():
            raise DlrunError(f"{folder}: the sweep was killed before it had begun", "start it anew")
        return Plan.from_json(runs.read_json(folder / _FILE))


def planned(given: Sequence[str], options: Options) -> tuple[Plan, RunConfig]:
    """The plan of a command line, and the config that its trials vary. Raises: DlrunError."""
    fixed, dimensions = split_sweep(given, config_dir=options.config_dir)
    composed = compose(fixed, config_dir=options.config_dir, verb=DEFAULT)
    search: SearchConfig = convert.to_verb("search", composed.verb, options.registry)
    wanted = {**search.space} or ({} if dimensions else {**search.suggested})
    _check_order(given, fixed)
    named = {dimension.key for dimension in dimensions} | {key(text) for text in fixed}
    _, further = split_sweep([], wanted, config_dir=options.config_dir)
    dimensions += [dimension for dimension in further if dimension.key not in named]
    dimensions = _narrowed(dimensions, fixed)
    space.check(dimensions)
    own = [text for text in fixed if key(text).split(".")[0] != "search"]
    user_conf = conf_folders.user_conf(options.config_dir)
    plan = Plan(own, dimensions, search, user_conf)
    plan = replace(plan, space=[_typed(dimension, plan, options) for dimension in dimensions])
    _check_search(plan, options, {key(text) for text in given})
    _check_trials(plan, options)
    config = config_of_all(plan, options)
    return _with_named_runs(plan, config, options), config


def _check_order(given: Sequence[str], fixed: Sequence[str]) -> None:
    """The last of several overrides counts, as everywhere: a space may follow one value, and is not undone by one."""
    varied: set[str] = set()
    for text in given:
        if text not in fixed:
            varied.add(key(text))
        elif key(text) in varied:
            raise DlrunError(f"{key(text)}: has several values, and then one: {text}", "give it once")


def key(text: str) -> str:
    """The setting that an override names."""
    return text.lstrip("+").partition("=")[0]


def _with_named_runs(plan: Plan, config: RunConfig, options: Options) -> Plan:
    """The run that trials start from by its full id: `latest` is the sweep itself, once it has begun."""

    def named(dimension: Dimension) -> Dimension:
        ids = [f"run:{runs.find(options.runs, t).id}" if t.startswith("run:") else t for t in dimension.choices]
        return replace(dimension, choices=tuple(ids)) if dimension.key == _SOURCE else dimension

    source, fixed = config.transfer.source or "", plan.fixed
    if source.startswith("run:") and not any(dimension.key == _SOURCE for dimension in plan.space):
        fixed = [*(text for text in fixed if key(text) != _SOURCE), f"{_SOURCE}={source}"]
    return replace(plan, fixed=fixed, space=[named(dimension) for dimension in plan.space])


def _narrowed(dimensions: Sequence[Dimension], fixed: Sequence[str]) -> list[Dimension]:
    """Where a group has one choice on the command line, what varies with that choice always varies, and what varies
    with its others never does."""
    chosen = {key(text): text.partition("=")[2] for text in fixed if key(text) in GROUPS}
    return [
        replace(dimension, when=None) if dimension.when and dimension.when[0] in chosen else dimension
        for dimension in dimensions
        if not dimension.when or chosen.get(dimension.when[0], dimension.when[1]) == dimension.when[1]
    ]


def _check_search(plan: Plan, options: Options, given: set[str]) -> None:
    """What can be said of a search before its first run is made. given: the settings named. Raises: DlrunError."""
    from dlrun.commands._sweep_storage import refuse_password
    from dlrun.commands._sweep_study import is_pruned, objectives, pruner_of, sampler_of

    refuse_password(plan.search.storage)
    chased = objectives(plan.search.objectives)
    if chased and "search.pruner" in given and plan.search.pruner != "none" and not is_pruned(chased):
        raise DlrunError(
            f"search.pruner={plan.search.pruner}: no pruner compares several objectives, or a count", "leave it out"
        )
    if not chased and any(dimension.key == "task" for dimension in plan.space):
        raise DlrunError(
            "task: each task chases a goal of its own, and trials are compared by one",
            "say which: search.objectives=[loss:min]",
        )
    pruner_of(plan.search, chased)
    sampler_of(plan.search, plan.space, chased, plan.search.seed, options.registry)


def counted(plan: Plan, options: Options) -> str:
    """ "6 trials by grid"; of a grid with more points than trials, how all of them would be tried."""
    from dlrun.commands._sweep_study import sampler_of
    from dlrun.search.grid import num_points

    search = plan.search
    points = num_points(sampler_of(search, plan.space, [], search.seed, options.registry)) or search.trials
    said = f"{min(search.trials, points)} trials by {search.name}"
    left = f" (of its {points} points; for all: search.trials={points})" if points > search.trials else ""
    return said + left


def config_of_all(plan: Plan, options: Options) -> RunConfig:
    """What stands for the sweep as a whole: everything that varies has the first of its values."""
    first = {dimension.name: dimension.first for dimension in plan.space if dimension.when is None}
    return config_of([*plan.fixed, *space.overrides(plan.space, first)], plan, options, "")


def config_of(texts: Sequence[str], plan: Plan, options: Options, name: str) -> RunConfig:
    """The config of these overrides. Raises: DlrunError if it is not legal."""
    values = compose(texts, config_dir=plan.config_dir).values
    config = making.resolved(convert.to_config(values, options.registry), options.runs)
    return replace(config, name=f"{config.name} {name}".strip()) if name else config


def _typed(dimension: Dimension, plan: Plan, options: Options) -> Dimension:
    """An interval between whole numbers is one of whole numbers where the setting takes no others."""
    if dimension.kind != "float" or not (dimension.low.is_integer() and dimension.high.is_integer()):
        return dimension
    first = {d.name: d.first for d in plan.space if d.when is None and d.kind == "choice"}
    first |= dict([dimension.when]) if dimension.when else {}

    def legal(value: Any) -> bool:
        values = first | {dimension.name: value}
        try:
            config_of([*plan.fixed, *space.overrides(plan.space, values)], plan, options, "")
        except DlrunError:
            return False
        return True

    if legal(dimension.low + 0.5) or not legal(int(dimension.low)):
        return dimension
    return replace(dimension, kind="int", low=int(dimension.low), high=int(dimension.high))


def _check_trials(plan: Plan, options: Options) -> None:
    """Compose one trial for every choice of a group, and one for every end of the others. Raises: DlrunError."""
    always = [dimension for dimension in plan.space if dimension.when is None]
    groups = [dimension for dimension in always if dimension.key in GROUPS]
    for dimension in plan.space:
        if dimension.when and not any(d.key == dimension.when[0] and dimension.when[1] in d.choices for d in groups):
            group, choice = dimension.when
            raise DlrunError(
                f"search.space.when: {group}={choice} is not among the values of {group}",
                f"let {group} vary: {group}={choice},…",
            )
    first = {dimension.name: dimension.first for dimension in always}
    for group in groups:
        for choice in group.choices:
            values = first | {group.key: choice}
            values |= {d.name: d.first for d in plan.space if d.when == (group.key, choice)}
            _try(values, plan, options)
    for dimension in plan.space:
        ends = dimension.choices if dimension.kind == "choice" else (dimension.low, dimension.high)
        with_group = dict([dimension.when]) if dimension.when else {}
        for value in ends if dimension.key not in GROUPS else ():
            _try(first | with_group | {dimension.name: value}, plan, options)


def _try(values: dict[str, Any], plan: Plan, options: Options) -> None:
    try:
        config_of([*plan.fixed, *space.overrides(plan.space, values)], plan, options, "")
    except DlrunError as error:
        chosen = " ".join(space.overrides(plan.space, values))
        hint = error.hint
        if any(name in GROUPS for name in values) and "unknown setting" in error.message:
            hint = "a setting of one choice only goes under search.space.when"
        raise DlrunError(f"{error.message} (in the trial {chosen})", hint, error.code) from error


# ---------------------------------------------------------------- afterwards


def experiment_of(overrides: Sequence[str], plan: Plan, options: Options, comment: str) -> str:
    """The whole config that these overrides make, as an experiment's file."""
    config = config_of(overrides, plan, options, "")
    plain = convert.to_plain(config)
    said = {text.partition("=")[0]: text.partition("=")[2] for text in overrides}
    defaults = []
    for group in COMPONENT_GROUPS:
        choice = said.get(group) or _choice_of(group, getattr(config, group).name, plan)
        defaults.append({f"override /{group}": choice})
    body = yaml.safe_dump({"defaults": defaults, **plain}, sort_keys=False, allow_unicode=True)
    return (
        "# @package _global_\n"
        f"# {comment}\n"
        f"# command:  dlrun train experiment=NAME   (this file as conf/experiment/NAME.yaml)\n{body}"
    )


def _choice_of(group: str, component: str, plan: Plan) -> str:
    """A choice of the group that names this component: the one of the same name, else the first."""
    fits = []
    for choice in conf_folders.choices(group, plan.config_dir):
        path = conf_folders.file_of(group, choice, plan.config_dir)
        if path is not None and conf_folders.component_name(path) == component:
            fits.append(choice)
    return component if component in fits or not fits else fits[0]
