"""`dlrun compress --max-drop`: the strongest setting of a method whose validation drop stays within what is allowed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dlrun.commands._terminal import number, print_json, result_console, table
from dlrun.config.schema import CompressionConfig
from dlrun.contracts import Goal
from dlrun.errors import DlrunError, Exit
from dlrun.training.latency import timed

if TYPE_CHECKING:
    from dlrun.commands._compress_work import Work

_TRIES = 7  # the strongest, then bisection: 2^-6 of the range
# Strength from 0 (the weakest) to 1 as settings of each method that has one.
_STRENGTHS: dict[str, Callable[[float], dict[str, Any]]] = {
    "prune_magnitude": lambda u: {"sparsity": 0.98 * u},
    "prune_movement": lambda u: {"sparsity": 0.98 * u},
    "prune_channels": lambda u: {"macs": 1 - 0.95 * u, "ratio": None},
    "low_rank": lambda u: {"energy": 1 - 0.9 * u, "rank": None},
    "cluster": lambda u: {"clusters": round(2 ** (8 - 7 * u))},
    "drop_heads": lambda u: {"share": 0.9 * u},
    "drop_layers": lambda u: {"share": 0.9 * u},
}


def _is_by_layers(step: CompressionConfig) -> bool:
    """Whether a method's strength is how many layers it takes, the least sensitive first."""
    names = ("quantize_dynamic", "quantize_weights")
    return step.name in names and step.options.get("backend") != "onnxruntime"  # which takes all layers, or none


def _at(step: CompressionConfig, strength: float) -> dict[str, Any]:
    """The settings of a method whose strength is a number, at this one; none of another."""
    if step.options.get("scope") == "n_m":  # its sparsity is 1 - n/m
        return {"n": max(1, min(step.options["m"] - 1, round((1 - strength) * step.options["m"])))}
    return _STRENGTHS[step.name](strength) if step.name in _STRENGTHS else {}


@dataclass(eq=False)
class Tried:
    """One setting: what it gave on validation, and its cost. state: of the work when it was done."""

    strength: float
    settings: dict[str, Any]
    value: float
    drop: float
    bytes: int
    latency: float
    model: nn.Module | None
    done: list[dict[str, Any]]
    weighed: Any
    config: Any

    def to_json(self, allowed: float) -> dict[str, Any]:
        """For the result."""
        return {"strength": self.strength, "settings": self.settings, "value": self.value, "drop": self.drop,
                "bytes": self.bytes, "latency_seconds": self.latency, "passes": self.drop <= allowed}  # fmt: skip


def strongest(work: Work, steps: dict[str, CompressionConfig], max_drop: str) -> nn.Module:
    """The model of the strongest setting that passes. Raises: DlrunError with code GATE naming the nearest miss."""
    goal, model, name = work.tools.task.goal, work.predictor.model, _searched(steps)
    _require_free(work.asked["compression"].get(name, {}), steps[name], name)
    if "valid" not in work.predictor.dataset.splits:
        raise DlrunError("--max-drop is measured on validation, and the data has no valid split", "data.valid_fraction")
    scored = work.predictor.evaluate("valid") if work.is_several() else work.tools.score(model)
    before = scored[goal.metric]
    allowed = allowed_drop(max_drop, before)
    names = list(steps)
    earlier = names[: names.index(name)]
    tried = [] if work.is_several() else [_untouched(work, before)]
    for each in earlier:
        model = work.step(model, each, steps[each])
    later = {each: steps[each] for each in names[names.index(name) :]}
    drops = [] if work.is_several() and not earlier else sensitivity(work, model, goal, before)
    for layer, drop in drops[:5]:
        work.reporter.note(f"  sensitive: {layer} loses {drop:.4g} when it alone is rounded to int4")
    search = _Search(work, model, later, name, goal, before, allowed, drops)
    return _chosen(work, tried, search.run(), goal, before, allowed)


def _untouched(work: Work, before: float) -> Tried:
    """What was there to begin with, which the front is drawn with."""
    model = work.predictor.model
    return Tried(0.0, {}, before, 0.0, _bytes(model), _latency(work, model), None, [], work.weighed, work.config)


def allowed_drop(text: str, before: float) -> float:
    """How much of the goal may be lost: absolute in its own unit, or with % relative. Raises: DlrunError."""
    try:
        given = float(text.removesuffix("%"))
    except ValueError as error:
        raise DlrunError(f"--max-drop: '{text}' is no number", "0.01, or 1% for a share of the value") from error
    if not 0 <= given < float("inf"):
        raise DlrunError(f"--max-drop: {text} is not at least 0", "0.01, or 1% for a share of the value")
    return abs(before) * given / 100 if text.endswith("%") else given


def _searched(steps: Mapping[str, CompressionConfig]) -> str:
    """The step whose strength is looked for: the first that has one, else the last."""
    for name, step in steps.items():
        if step.name in _STRENGTHS or _is_by_layers(step):
            return name
    return list(steps)[-1]


def _require_free(typed: Mapping[str, Any], step: CompressionConfig, name: str) -> None:
    """Raises: DlrunError for a strength that is looked for and was typed, too."""
    for setting in _at(step, 0.0):
        if typed.get(setting) is not None:
            raise DlrunError(
                f"--max-drop looks for compression.{name}.{setting} by itself, and it is set to {typed[setting]}",
                "leave one of the two out",
            )


def drop_of(goal: Goal, before: float, value: float) -> float:
    """By how much a value is worse; negative where it is better."""
    return before - value if goal.mode == "max" else value - before


@torch.no_grad()
def sensitivity(work: Work, model: nn.Module, goal: Goal, before: float) -> list[tuple[str, float]]:
    """Each layer, and what validation loses when its weights alone are rounded to int4; the most sensitive first."""
    from dlrun.compression._quantized import rounded, scales

    found = []
    for name, weights in _matrices(model).items():
        kept = [weight.detach().clone() for weight in weights]
        for weight in weights:
            scale = scales(weight, 7)
            weight.copy_(rounded(weight, scale, 7) * scale)
        found.append((name, drop_of(goal, before, work.tools.score(model)[goal.metric])))
        for weight, was in zip(weights, kept, strict=True):
            weight.copy_(was)
    return sorted(found, key=lambda pair: -pair[1])


def _matrices(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Matrices and kernels by the layer they are of: a recurrent one has several. The model's own by their names."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.dim() >= 2 and weight.is_floating_point() and "parametrizations." not in name:
            layer, _, own = name.rpartition(".")
            found.setdefault(layer or own, []).append(weight)
    return found


@dataclass
class _Search:
    work: Work
    model: nn.Module  # after the steps before the one whose strength is looked for
    steps: dict[str, CompressionConfig]
    name: str
    goal: Goal
    before: float
    allowed: float
    drops: list[tuple[str, float]]

    def run(self) -> list[Tried]:
        """The strongest, and where that fails bisection between it and nothing. A strength that the method cannot have
        is too strong. Raises: DlrunError of the first such, where none can be had."""
        low, high, strength = 0.0, 1.0, 1.0
        refused: DlrunError | None = None
        tried: list[Tried] = []
        for _ in range(_TRIES):
            try:
                found = self._known(tried, strength) or self.attempt(strength)
            except _Refused as error:
                found, refused = None, refused or error.reason
            tried += [found] if found is not None and found not in tried else []
            passes = found is not None and found.drop <= self.allowed
            if strength == 1.0 and (passes or self._has_no_strength()):
                break
            low, high = (strength, high) if passes else (low, strength)
            strength = (low + high) / 2
        if not tried and refused is not None:
            raise refused
        return tried

    def _known(self, tried: list[Tried], strength: float) -> Tried | None:
        """The same settings at another strength: counts of values and layers are whole numbers."""
        settings = self.settings(strength)
        return next((each for each in tried if settings and each.settings == settings), None)

    def _has_no_strength(self) -> bool:
        step = self.steps[self.name]
        return step.name not in _STRENGTHS and not _is_by_layers(step)

    def settings(self, strength: float) -> dict[str, Any]:
        """Of the method at a strength; layers that alone cost too much are left alone."""
        step = self.steps[self.name]
        if _is_by_layers(step):
            spared = round((1 - strength) * len(self.drops))
            return {"ignore": [*self._ignored(), *(layer for layer, _ in self.drops[:spared])]}
        return _at(step, strength)

    def _ignored(self) -> list[str]:
        """The layers that the user leaves alone."""
        return [str(layer) for layer in self.steps[self.name].options.get("ignore") or []]

    def attempt(self, strength: float) -> Tried:
        """Try one strength on a copy, with the steps that follow. Raises: _Refused."""
        work, settings = self.work, self.settings(strength)
        done, weighed, step, config = list(work.done), work.weighed, work.tools.step, work.config
        shown = _said(settings) or self.name
        model = copy.deepcopy(self.model)
        for name, given in self.steps.items():
            if name != self.name:
                model = work.step(model, name, given)
                continue
            try:
                model = self._stepped(model, name, replace(given, options=given.options | settings))
            except DlrunError as error:
                if error.code != Exit.USAGE or error.message.startswith("compression."):  # a setting, at any strength
                    raise
                work.reporter.note(f"  {shown}: cannot be had: {error.message}")
                raise _Refused(error) from error
        value = work.tools.score(model)[self.goal.metric]
        drop = drop_of(self.goal, self.before, value)
        size, latency = _bytes(model), _latency(work, model)
        tried = Tried(
            strength, settings, value, drop, size, latency, model, work.done, work.weighed, work.config
        )  # fmt: skip
        work.done, work.weighed, work.config = done, weighed, config
        work.tools.step = max(step, work.tools.step)
        verdict = "passes" if drop <= self.allowed else "loses too much"
        work.reporter.note(f"  {shown}: valid/{self.goal.metric} {value:.4f}, {verdict}")
        if drop > self.allowed:
            tried.model = None  # not to hold what is not wanted
        return tried

    def _stepped(self, model: nn.Module, name: str, step: CompressionConfig) -> nn.Module:
        """A step; a layer that the method has no say over is not among those it can leave alone."""
        while True:
            try:
                return self.work.step(model, name, step)
            except DlrunError as error:
                spared = (step.options.get("ignore") or [])[len(self._ignored()) :]  # the user's come first
                layer = _unknown_layer(error.message, spared)
                if layer is None:
                    raise
                left = [*self._ignored(), *(one for one in spared if one != layer)]
                step = replace(step, options=step.options | {"ignore": left})


def _unknown_layer(message: str, ignored: list[str]) -> str | None:
    """The layer that `ignore` names and the method does not have."""
    return next((layer for layer in ignored if f"no layer is called '{layer}'" in message), None)


class _Refused(Exception):
    """A method cannot have a strength."""

    def __init__(self, reason: DlrunError) -> None:
        super().__init__(reason.message)
        self.reason = reason


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _latency(work: Work, model: nn.Module) -> float:
    inputs = [work.batch[name][:1] for name in work.predictor.spec.inputs]
    with torch.no_grad():
        times = sorted(timed(lambda given: model.eval()(*given), [inputs]))
    return times[len(times) // 2]


def _chosen(
    work: Work, untouched: list[Tried], tried: list[Tried], goal: Goal, before: float, allowed: float
) -> nn.Module:  # fmt: skip
    front = pareto([*untouched, *tried], goal)
    if not work.options.as_json:
        console = result_console()
        console.print(f"valid/{goal.metric} was {before:.4f}; at most {allowed:.4g} may be lost. The front:")
        rows = [["as it was" if each in untouched else _said(each.settings) or "as given", each.value, each.bytes,
                 f"{each.latency * 1e3:.3f}", "passes" if each.drop <= allowed else ""] for each in front]  # fmt: skip
        console.print(table(["setting", f"valid/{goal.metric}", "bytes", "latency, ms", ""], rows))
    passing = [each for each in tried if each.drop <= allowed and each.model is not None]
    found = {
        "max_drop": allowed, "before": before, "tried": [each.to_json(allowed) for each in tried],
        "front": [each.to_json(allowed) for each in front],
    }  # fmt: skip
    if not passing:
        near = min(tried, key=lambda each: each.drop)
        said = _said(near.settings)
        if work.options.as_json:
            nearest = {"chosen": None, "nearest": near.to_json(allowed)}
            print_json({"run_id": work.run and work.run.id, "status": "FAILED", "search": found | nearest})
        raise DlrunError(
            f"--max-drop: no setting loses at most {allowed:.4g} of valid/{goal.metric}; the nearest loses "
            f"{near.drop:.4g}" + (f" ({said})" if said else ""),
            "allow more, fine-tune for longer, or choose a gentler method",
            Exit.GATE,
        )
    best = max(passing, key=lambda each: each.strength)
    work.done, work.weighed, work.config = best.done, best.weighed, best.config
    work.extra["search"] = found | {"chosen": best.settings}
    assert best.model is not None
    return best.model


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={number(value)}" for key, value in settings.items() if value is not None)


def pareto(tried: list[Tried], goal: Goal) -> list[Tried]:
    """Those that no other is at least as good as in the goal, bytes and latency, and better in one of them."""
    sign = -1.0 if goal.mode == "max" else 1.0

    def costs(each: Tried) -> tuple[float, float, float]:
        return sign * each.value, each.bytes, each.latency

    def beaten(each: Tried) -> bool:
        own = costs(each)
        return any(
            costs(other) != own and all(a <= b for a, b in zip(costs(other), own, strict=True)) for other in tried
        )

    return sorted((each for each in tried if not beaten(each)), key=lambda each: each.bytes)
