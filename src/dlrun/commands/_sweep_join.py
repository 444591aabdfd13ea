"""What a machine must have to join a sweep: the sweep's database, its tracking server, and the plan that lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlrun import runs, tracking
from dlrun.commands import _sweep_plan as plans
from dlrun.commands._sweep_plan import Plan
from dlrun.commands._sweep_study import published
from dlrun.config import conf_folders
from dlrun.config.schema import RunConfig
from dlrun.errors import DlrunError, Exit

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_STORAGE = "search.storage"
_OWN = (_STORAGE, "data.path", "hardware", "tracking")  # what may differ from machine to machine


def joined(reference: str, given: Sequence[str], options: Options) -> tuple[str, Plan, RunConfig]:
    """The sweep's id, its plan as this machine runs it, and the config that its trials vary. Raises: DlrunError."""
    named = dict(_split(text) for text in given)
    for name in named:
        if not f"{name}.".startswith(tuple(f"{own}." for own in _OWN)):
            raise DlrunError(f"--join takes the sweep as it is; {name} cannot differ", f"it takes {', '.join(_OWN)}")
    sweep_id, stored, objectives = published(reference, _storage(reference, named, options))
    plan = Plan.from_json(stored)
    own = [text for text in given if _split(text)[0] != _STORAGE]
    search = replace(plan.search, storage=named.get(_STORAGE, plan.search.storage), objectives=objectives)
    conf = conf_folders.user_conf(options.config_dir)
    plan = replace(plan, fixed=[*plan.fixed, *own], search=search, config_dir=conf)
    config = plans.config_of_all(plan, options)
    reason = tracking.lacks(options.runs, config.tracking.uri, sweep_id)
    if reason:
        raise DlrunError(
            f"--join: machines of one sweep share a tracking server: {reason}",
            "tracking.uri=http://HOST:5000, or MLFLOW_TRACKING_URI",
            Exit.TRACKING,
        )
    return sweep_id, plan, config


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.lstrip("+").partition("=")
    return name, value.strip("'\"")


def _storage(reference: str, named: dict[str, str], options: Options) -> str:
    """The address of the sweep's database: given, or as the sweep in this runs folder has it."""
    if _STORAGE in named:
        return named[_STORAGE]
    try:
        storage = Plan.read(runs.find(options.runs, reference).folder).search.storage
    except DlrunError as error:
        raise DlrunError(
            f"--join {reference}: where is the sweep's database?", f"{_STORAGE}=postgresql+psycopg://USER@HOST/NAME"
        ) from error
    if storage is None:
        raise DlrunError(
            f"--join: sweep {reference} keeps its study in a file of its own; machines share a database",
            f"begin it with {_STORAGE}=postgresql+psycopg://USER@HOST/NAME; here: dlrun sweep --resume {reference}",
        )
    return storage
