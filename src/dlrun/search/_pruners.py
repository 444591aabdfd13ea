"""When to stop a trial early: Optuna's pruners by the names of the field."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import optuna

from dlrun.errors import DlrunError, did_you_mean

_PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "asha": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


def pruner(name: str, options: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """The pruner of this name. A trial's resource is the number of its evaluations so far.

    Raises: DlrunError for an option it does not have.
    Source: Golovin et al. 2017 (median); Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning"
    (asha); Li et al. 2018, "Hyperband".
    """
    made = _PRUNERS[name]
    known = [setting for setting in inspect.signature(made.__init__).parameters if setting != "self"]
    for option in options:
        if option not in known:
            raise DlrunError(f"search.pruner_options: {name} has no option '{option}'", did_you_mean(option, known))
    try:
        return made(**options)
    except (TypeError, ValueError) as error:
        raise DlrunError(f"search.pruner_options: {error}") from error
