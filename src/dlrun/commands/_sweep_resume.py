"""What `dlrun sweep --resume` may change: the hardware, the tracking, and how many trials and failures there may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlrun import runs
from dlrun.commands import _making as making
from dlrun.commands import _sweep_plan as plans
from dlrun.commands._sweep_plan import Plan
from dlrun.config import check, convert
from dlrun.config.compose import compose, compose_on
from dlrun.errors import DlrunError

if TYPE_CHECKING:
    from dlrun.commands.train import Options

_SEARCH = ("search.trials", "search.max_failures")


def changed(plan: Plan, given: Sequence[str], options: Options) -> Plan:
    """The plan with what is given. Raises: DlrunError for what would make it another sweep."""
    named = {plans.key(text): text for text in given}
    for name in named:
        if name not in _SEARCH and not f"{name}.".startswith(("hardware.", "tracking.")):
            raise DlrunError(
                f"--resume cannot change {name}: the trials could not be compared",
                f"it takes hardware.*, tracking.* and {', '.join(_SEARCH)}; for all else: dlrun sweep …",
            )
    fixed = [text for text in plan.fixed if plans.key(text) not in named]
    fixed += [text for name, text in named.items() if name not in _SEARCH]
    search = plan.search
    if ours := [name for name in named if name in _SEARCH]:
        composed = compose([named[name] for name in ours], verb=plans.DEFAULT)
        found = convert.to_verb("search", composed.verb, options.registry)
        fields = [name.partition(".")[2] for name in ours]
        search = replace(search, **{field: getattr(found, field) for field in fields})
    if search.trials < plan.search.trials:
        raise DlrunError(
            f"--resume: search.trials={search.trials} is less than {plan.search.trials}", "it can only become larger"
        )
    return replace(plan, fixed=fixed, search=search)


def write(sweep: runs.Run, plan: Plan, given: Sequence[str], options: Options) -> runs.Run:
    """Keep the changed plan, for the sweep and for its trials that were interrupted. Raises: DlrunError."""
    config = plans.config_of_all(plan, options)
    own = [text for text in given if plans.key(text) not in _SEARCH]
    with runs.hold(sweep.folder):
        making.note_resume(sweep, {plans.key(text): text.partition("=")[2] for text in given})
        if sweep.status == "FINISHED":  # not any more, also if it is killed before it has begun again
            sweep = sweep.update(status="KILLED", reason="to be gone on with: " + " ".join(given))
        plan.write(sweep.folder)
        check.write(sweep.folder, config)
        for child in runs.listing(options.runs):
            if sweep.id in child.record.parents and child.record.verb == "train" and not child.result:
                values = compose_on(check.read_plain(child.folder), own, config_dir=options.config_dir).values
                check.write(child.folder, convert.to_config(values, options.registry))
    return sweep
