"""A sweep's study: what was tried, what came of it, what to try next. Optuna's ask and tell, nothing of its loop."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from dlrun.commands import _sweep_storage as storages
from dlrun.config.schema import COUNTS, SearchConfig
from dlrun.config.space import Dimension
from dlrun.contracts import Goal
from dlrun.errors import DlrunError
from dlrun.registry import Registry
from dlrun.search.grid import LOST, num_points

_BEAT_SECONDS = 15.0  # between two signs of life of a sitting
GONE_SECONDS = 120.0  # of silence, after which a sitting on another machine is taken for dead
_ONE_SEQUENCE = ("grid", "quasi_random")  # whose points follow from the seed and the study: no sitting draws its own
# Pruners whose papers count what was spent, from 1; Optuna's others, with their warm-ups, count steps from 0.
_BY_RUNGS = ("asha", "hyperband")


@dataclass(frozen=True)
class Objective:
    """What is to be bettered: a metric of the validation split, or one of COUNTS."""

    name: str
    mode: str

    @property
    def goal(self) -> Goal:
        """As a sampler takes it."""
        return Goal(self.name, self.mode)  # type: ignore[arg-type]

    def value(self, result: Mapping[str, Any]) -> float | None:
        """Of a run's result.json; None if it has none."""
        if self.name == "energy_joules":
            return (result.get("energy") or {}).get("joules")
        if self.name == "latency":
            seconds = result.get("latency_seconds")
            return None if seconds is None else 1e3 * seconds  # a person reads milliseconds
        return result.get(self.name) if self.name in COUNTS else result.get("metrics", {}).get(f"valid/{self.name}")


def objectives(given: Sequence[str]) -> list[Objective]:
    """ "metric:max" to an objective. Raises: DlrunError."""
    made = []
    for text in given:
        name, _, mode = str(text).partition(":")
        name = name.strip().removeprefix("valid/")
        if name.startswith("test/"):
            raise DlrunError(f"search.objectives: {name}: the test split must not choose", "name it without test/")
        if mode.strip() not in ("max", "min") or not name:
            raise DlrunError(f"search.objectives: '{text}' is not metric:max or metric:min", "e.g. accuracy:max")
        made.append(Objective(name, mode.strip()))
    if len({objective.name for objective in made}) < len(made):
        raise DlrunError(f"search.objectives: one is named twice: {', '.join(map(str, given))}")
    return made


class Study:
    """One sweep's trials in their storage, which outlives every process."""

    def __init__(
        self,
        name: str,
        storage: str | Path,
        search: SearchConfig,
        space: Sequence[Dimension],
        chased: Sequence[Objective],
        registry: Registry,
        sitting: str = "",
    ) -> None:
        self.search, self.space, self.chased, self.sitting = search, list(space), list(chased), sitting or name
        self.goals: Sequence[str] = ()  # what task.goal may be
        self._beaten, self._heard = 0.0, {}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        opened = storages.opened(storage)
        known = name in storages.names(opened, storage)
        begun = len(optuna.load_study(study_name=name, storage=opened).trials) if known else 0
        # A sampler begun anew draws the same again: those of a resumed sweep, or of another machine, begin elsewhere.
        joined = zlib.crc32(sitting.encode()) if sitting not in ("", name) else 0
        own = 0 if search.name in _ONE_SEQUENCE else 1_000_003 * begun + joined
        seed = (search.seed + own) % 2**32
        sampler, pruner = sampler_of(search, self.space, chased, seed, registry), pruner_of(search, chased)
        with _quiet():
            self.study = optuna.create_study(
                study_name=name, storage=opened, sampler=sampler, pruner=pruner, load_if_exists=True,
                directions=["maximize" if objective.mode == "max" else "minimize" for objective in chased],
            )  # fmt: skip

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those that count, in order of their numbers."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if not trial.user_attrs.get(LOST)]

    @property
    def budget(self) -> int:
        """Trials in all; a grid has no more than its points."""
        return min(self.search.trials, num_points(self.study.sampler) or self.search.trials)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A new trial and its value for each dimension it has, by name; conditional ones after what they hang on.
        None where another machine took the last one of the budget at the same moment."""
        with _quiet():
            trial = self.study.ask()
            trial.set_user_attr("sitting", self.sitting)
            if len([other for other in self.trials if other.number < trial.number]) >= self.budget:
                trial.set_user_attr(LOST, True)
                self.study.tell(trial, state=TrialState.FAIL)
                return None
            values: dict[str, Any] = {}
            for dimension in sorted(self.space, key=lambda dimension: dimension.when is not None):
                if dimension.when is None or values.get(dimension.when[0]) == dimension.when[1]:
                    values[dimension.name] = trial._suggest(dimension.name, distribution(dimension))
        return trial, values

    def again(self, frozen: FrozenTrial) -> optuna.Trial:
        """A handle on a trial that an earlier process asked for."""
        return optuna.Trial(self.study, frozen._trial_id)

    def bind(self, trial: optuna.Trial, run_id: str, chosen: Sequence[str]) -> None:
        """Note a trial's run, and the overrides that make it, before it begins."""
        trial.set_user_attr("run", run_id)
        trial.set_user_attr("overrides", list(chosen))

    def prune(self, trial: optuna.Trial, step: int, values: Mapping[str, float]) -> bool:
        """Report an evaluation, and hear whether the trial is worth going on with.

        Raises: DlrunError if the task reports no such metric.
        """
        for objective in self.chased:
            if objective.name not in COUNTS and f"valid/{objective.name}" not in values:
                raise self._unknown(objective, values)
        if not is_pruned(self.chased):
            return False
        steps = trial.user_attrs.get("steps", [])
        with _quiet():
            if step not in steps:  # else a resume repeats what was reported before the kill
                number = len(steps) + (self.search.pruner in _BY_RUNGS)
                trial.report(values[f"valid/{self.chased[0].name}"], number)
                trial.set_user_attr("steps", [*steps, step])
            return bool(trial.should_prune())  # numpy says so in its own type

    def _unknown(self, objective: Objective, values: Mapping[str, float]) -> DlrunError:
        said = f"search.objectives: the task does not report '{objective.name}'; it reports"
        if not values:
            return DlrunError(f"{said} nothing: there is no valid split", "give the data one: data.valid_fraction=0.1")
        others = [name.removeprefix("valid/") for name in values]
        ways = [f"task.goal={objective.name}"] if objective.name in self.goals else []
        return DlrunError(f"{said} {', '.join(others)}", ", or ".join([*ways, f"one of {', '.join(COUNTS)}"]))

    def told(self, trial: optuna.Trial, result: Mapping[str, Any] | None, reason: str, pruned: bool) -> None:
        """What became of a trial. result: None for one that failed."""
        values = [objective.value(result) for objective in self.chased] if result else []
        lacking = [o.name for o, value in zip(self.chased, values, strict=False) if value is None]
        odd = [o.name for o, value in zip(self.chased, values, strict=False) if value is not None and value != value]
        reason = f"{', '.join(odd)} is not a number" if odd else reason
        trial.set_user_attr("reason", f"reports no {', '.join(lacking)}" if lacking else reason)
        if result:  # where the run itself lies on another machine, this is what there is of it
            kept = {name: result[name] for name in ("metrics", "rate", "step") if name in result}
            trial.set_user_attr("result", kept)
        with _quiet():
            if not values or lacking or odd:
                self.study.tell(trial, state=TrialState.FAIL)
            elif pruned and len(values) == 1:
                trial.set_user_attr("value", values[0])
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, values)  # type: ignore[arg-type]

    def lose(self, frozen: FrozenTrial) -> None:
        """A trial whose sweep was killed before its run was made: it does not count."""
        trial = self.again(frozen)
        trial.set_user_attr(LOST, True)
        self.study.tell(trial, state=TrialState.FAIL)

    # ---------------------------------------------------------------- with other machines

    def publish(self, plan: Mapping[str, Any]) -> None:
        """Leave what another machine needs to join."""
        self.study.set_user_attr("plan", dict(plan))
        chased = [f"{objective.name}:{objective.mode}" for objective in self.chased]
        self.study.set_user_attr("objectives", chased)

    def beat(self) -> None:
        """Now and then, a sign that this sitting lives."""
        if time.monotonic() - self._beaten > _BEAT_SECONDS:
            self._beaten = time.monotonic()
            self.study.set_user_attr(f"alive-{self.sitting}", time.time())

    def elsewhere(self) -> list[FrozenTrial]:
        """Trials that a living sitting of another machine trains. Those of one that has fallen silent are failed."""
        running = [trial for trial in self.trials if not trial.state.is_finished()]
        theirs = [trial for trial in running if trial.user_attrs.get("sitting", self.sitting) != self.sitting]
        for trial in list(theirs):
            if self._silent(trial.user_attrs["sitting"]):
                self.told(self.again(trial), None, "the machine that trained it is gone", pruned=False)
                theirs.remove(trial)
        return theirs

    def _silent(self, sitting: str) -> bool:
        """By our own clock: no two machines' clocks agree."""
        beat = self.study.user_attrs.get(f"alive-{sitting}")
        known, since = self._heard.get(sitting, (None, 0.0))
        if sitting not in self._heard or known != beat:
            self._heard[sitting] = (beat, since := time.monotonic())
        return time.monotonic() - since > GONE_SECONDS

    def ranked(self) -> list[FrozenTrial]:
        """Complete trials, the best first; with several objectives those that none beats come first."""
        done = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        sign = -1.0 if self.chased[0].mode == "max" else 1.0
        if len(self.chased) == 1:
            return sorted(done, key=lambda trial: sign * (trial.value or 0.0))
        front = self.front()
        return sorted(done, key=lambda trial: (trial.number not in front, sign * trial.values[0]))

    def front(self) -> set[int]:
        """Numbers of the complete trials that no other beats in every objective: of one objective, the best."""
        return {trial.number for trial in self.study.best_trials}

    def failed(self) -> list[FrozenTrial]:
        """Trials that failed."""
        return [trial for trial in self.trials if trial.state is TrialState.FAIL]


def published(name: str, storage: str) -> tuple[str, dict[str, Any], list[str]]:
    """The id, plan and objectives of the sweep of this name, or of which it is the beginning.

    Raises: DlrunError if the storage cannot be reached, or holds no such sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    opened = storages.opened(storage)
    fits = [known for known in storages.names(opened, storage) if known.startswith(name)]
    if len(fits) != 1:
        what = "no sweep" if not fits else f"{len(fits)} sweeps"
        raise DlrunError(f"--join: the storage holds {what} of the name '{name}'", "give the whole id of the sweep")
    study = optuna.load_study(study_name=fits[0], storage=opened)
    if "plan" not in study.user_attrs:
        raise DlrunError(f"--join: sweep {fits[0][:8]} has not begun yet", "try again in a moment")
    return fits[0], study.user_attrs["plan"], list(study.user_attrs["objectives"])


def sampler_of(
    search: SearchConfig, space: Sequence[Dimension], chased: Sequence[Objective], seed: int, registry: Registry
) -> optuna.samplers.BaseSampler:
    """The sampler of a sweep. Raises: DlrunError for settings, a space or objectives that it cannot have."""
    goals = [objective.goal for objective in chased]
    with _quiet():
        return registry.load("search", search.name).build(list(space), goals, seed, **search.options)


def is_pruned(chased: Sequence[Objective]) -> bool:
    """No pruner compares several objectives, or a count that is known from the start."""
    return len(chased) == 1 and chased[0].name not in COUNTS


def pruner_of(search: SearchConfig, chased: Sequence[Objective]) -> optuna.pruners.BasePruner:
    """The pruner of a sweep; none for several objectives, which no pruner compares."""
    from dlrun.search import _pruners

    return _pruners.pruner("none" if len(chased) > 1 else search.pruner, search.pruner_options)


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """As Optuna knows a dimension."""
    if dimension.kind == "choice":
        return CategoricalDistribution(dimension.choices)
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log, step=dimension.step or 1)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna warns of what it calls experimental; a user of dlrun can do nothing about that."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
